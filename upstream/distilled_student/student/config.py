"""The sizes of a student: one frozen dataclass; the named ones are `configs/student`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

LARGEST, MOST_LAYERS = 2**16, 256


@dataclass(frozen=True)
class StudentConfig:
    """Everything that determines a student's shape. The defaults are the paper's (Kerpicci et al. 2023, sec. 2).

    Attributes:
        frontend: ``cnn`` (wav2vec 2.0's, on the waveform) or ``logmel`` (80 log-mel bins at 100 frames a second and a
            strided convolution stem: far fewer operations on a CPU).
        normalize: Waveforms are brought to zero mean and unit variance first, as several public encoders expect.
            ``normalize_epsilon`` is added to the variance: 1e-7 in `transformers`, 1e-5 in fairseq and s3prl.
        conv_dim: Output width of each front-end convolution; ``conv_kernel`` and ``conv_stride`` have the same length.
        conv_norm: ``group`` (after the first convolution, BASE), ``layer`` (after each, LARGE) or ``none``.
        projection_norm: Layer norm before the linear projection of front-end frames to ``hidden_size``.
        projection: Whether there is such a projection; without it the last ``conv_dim`` is ``hidden_size``.
        positions: ``conv`` (wav2vec 2.0's convolutional embedding), ``sinusoidal`` (Whisper's) or ``none``.
        norm_first: False for post-norm layers (BASE), True for pre-norm layers with a final norm (LARGE, Whisper).
        shared: One layer's weights are those of all ``layers`` (ALBERT, Lan et al. 2020).
        encoder_stride: Frames that the encoder takes together: 2 is 25 Hz inside. Outside a frame is a frame: each
            hidden state stands for as many. The mean goes in (compare Zipformer's downsampling, Yao et al. 2024).
        causal: Frames depend on what came before alone, so that a stream gives what a file gives; needs ``logmel``.
            ``attention_context``: frames that one sees in a causal layer, itself included (of the encoder's).
        targets: Teacher layers that the prediction layers imitate, 1 for the first; empty for no prediction layers.
        target_size: Features of the teacher. ``prediction_size``: hidden features of each prediction layer.
    """

    frontend: str = "cnn"
    normalize: bool = False
    normalize_epsilon: float = 1e-7
    mel_bins: int = 80
    conv_dim: list[int] = field(default_factory=lambda: [512] * 7)
    conv_kernel: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    conv_stride: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    conv_bias: bool = False
    conv_norm: str = "group"
    projection: bool = True
    projection_norm: bool = True
    hidden_size: int = 768
    layers: int = 2
    heads: int = 12
    feed_forward: int = 3072
    norm_first: bool = False
    positions: str = "conv"
    position_kernel: int = 128
    position_groups: int = 16
    dropout: float = 0.1
    shared: bool = False
    encoder_stride: int = 1
    causal: bool = False
    attention_context: int = 100
    targets: list[int] = field(default_factory=lambda: [4, 8, 12])
    target_size: int = 768
    prediction_size: int = 768

    def __post_init__(self) -> None:
        def check(ok: bool, message: str) -> None:
            if not ok:
                raise ValueError(message)

        for f in fields(self):
            value, wanted = getattr(self, f.name), {"int": int, "bool": bool, "str": str, "float": (int, float)}
            ok = isinstance(value, wanted.get(f.type, list)) and (f.type == "bool" or not isinstance(value, bool))
            check(ok, f"{f.name}: expected {f.type}, found '{value}'")
            whole = f.type != "list[int]" or all(isinstance(v, int) and not isinstance(v, bool) for v in value)
            check(whole, f"{f.name}: expected whole numbers, found {value}")
        check(self.frontend in ("cnn", "logmel"), f"frontend: '{self.frontend}' is not cnn or logmel")
        check(
            self.conv_norm in ("group", "layer", "none"), f"conv_norm: '{self.conv_norm}' is not group, layer or none"
        )
        known = ("conv", "sinusoidal", "none")
        check(self.positions in known, f"positions: '{self.positions}' is not one of {', '.join(known)}")
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        check(len(lengths) == 1 and lengths != {0}, "conv_dim, conv_kernel, conv_stride: need one length, at least 1")
        # a file of settings can ask for anything: this is far beyond any speech encoder, and below what hurts
        for f in fields(self):
            values = getattr(self, f.name) if f.type == "list[int]" else [getattr(self, f.name)]
            most = MOST_LAYERS if f.name == "layers" else LARGEST
            check(len(values) <= MOST_LAYERS, f"{f.name}: more than {MOST_LAYERS} numbers")
            large = [value for value in values if f.type in ("int", "list[int]") and value > most]
            check(not large, f"{f.name}: needs numbers of at most {most}")
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            check(min(getattr(self, name)) > 0, f"{name}: needs positive numbers")
        sizes = ("mel_bins", "hidden_size", "layers", "heads", "feed_forward", "target_size", "prediction_size")
        for name in (*sizes, "encoder_stride", "attention_context"):
            check(getattr(self, name) > 0, f"{name}: needs a positive number")
        check(self.hidden_size % self.heads == 0, f"heads: {self.heads} does not divide hidden_size {self.hidden_size}")
        if self.positions == "conv":
            check(
                min(self.position_kernel, self.position_groups) > 0, "position_kernel, position_groups: need at least 1"
            )
            check(self.hidden_size % self.position_groups == 0, "position_groups: does not divide hidden_size")
        if self.positions == "sinusoidal":
            check(self.hidden_size % 2 == 0, "hidden_size: sinusoidal positions need an even number")
        same = self.conv_dim[-1] == self.hidden_size
        check(self.projection or same, "projection: false needs the last conv_dim equal to hidden_size")
        if self.causal:
            known = self.frontend == "logmel" and not self.normalize
            check(
                known, "causal: needs frontend logmel and normalize false: both of the others hear the whole utterance"
            )
            check(self.positions != "sinusoidal", "causal: needs positions conv or none: a stream has no beginning")
            behind = all(k >= s for k, s in zip(self.conv_kernel, self.conv_stride, strict=True))
            check(behind, "causal: needs conv_kernel of at least conv_stride")
        if self.frontend == "logmel":
            check(self.conv_norm != "group", "conv_norm: group is of the waveform; logmel has layer or none")
        check(0.0 <= self.dropout < 1.0, "dropout: needs a number in [0, 1)")
        check(self.frame_shift <= LARGEST, f"conv_stride: a frame every {LARGEST} samples is the least")
        check(0.0 < self.normalize_epsilon < math.inf, "normalize_epsilon: needs a positive number")
        check(all(t > 0 for t in self.targets), "targets: teacher layers are counted from 1")

    @property
    def frame_shift(self) -> int:
        """Samples at 16 kHz from one frame to the next."""
        shift = 160 if self.frontend == "logmel" else 1
        for stride in self.conv_stride:
            shift *= stride
        return shift
