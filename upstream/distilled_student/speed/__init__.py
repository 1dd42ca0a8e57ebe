"""Measures speed: all that is compared runs in turn on one machine. A history keeps the figures of each run."""
