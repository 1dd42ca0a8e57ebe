"""The sample rate of every waveform in this package. A module of its own, so that a student needs torch alone."""

SAMPLE_RATE = 16_000  # Hz
