"""The configuration of a student: one frozen dataclass, and the named sizes in ``configs/student``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path

from distilled_student.common.errors import did_you_mean

# Far beyond any speech encoder. A config.json can ask for any size: it must not fill the memory.
MAX_SIZE, MAX_LAYERS = 2**16, 256

FRONTENDS = ("cnn", "logmel")
CONV_NORMS = ("group", "layer", "none")
POSITIONS = ("conv", "sinusoidal", "none")
CONV_FIELDS = ("conv_dim", "conv_kernel", "conv_stride")
DROPOUTS = ("attention_dropout", "activation_dropout", "projection_dropout", "layerdrop")  # besides ``dropout``
SIZE_FIELDS = (
    "mel_bins",
    "hidden_size",
    "layers",
    "heads",
    "feed_forward",
    "target_size",
    "prediction_size",
    "encoder_stride",
    "attention_context",
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class StudentConfig:
    """Everything that determines a student's network. The defaults are the paper's (Kerpicci et al. 2023, sec. 2).

    Attributes:
        frontend: ``cnn`` (wav2vec 2.0's, on the waveform) or ``logmel`` (80 log-mel bins at 100 frames a second and
            strided convolutions: far fewer operations on a CPU).
        normalize: Scale each waveform to zero mean and unit variance first, as several public encoders expect.
        normalize_epsilon: Added to that variance; 1e-7 in `transformers`, 1e-5 in fairseq and s3prl.
        mel_bins: Number of mel bins of ``logmel``.
        conv_dim: Number of output channels of each front-end convolution.
        conv_kernel: Kernel size of each front-end convolution; as many numbers as in ``conv_dim``.
        conv_stride: Stride of each front-end convolution; as many numbers as in ``conv_dim``.
        conv_bias: Whether the front-end convolutions have a bias.
        conv_norm: ``group`` (after the first convolution, as in the BASE models), ``layer`` (after each convolution, as
            in LARGE) or ``none``.
        hidden_size: Features of each hidden state: the width of the transformer encoder.
        layers: Number of transformer layers.
        heads: Number of attention heads of each layer; divides ``hidden_size``.
        feed_forward: Width of the feed-forward part of each layer.
        dropout: Dropout probability in the encoder, in training only: after positions, attention and feed-forward part.
        attention_dropout: Dropout probability of the attention weights; None: ``dropout``.
        activation_dropout: Dropout probability after the activation of the feed-forward part; None: ``dropout``.
        projection_dropout: Dropout probability after the projection.
        layerdrop: Probability that a layer is skipped (Fan et al. 2020), in training only.
        projection: Whether a linear layer maps the front end's channels to ``hidden_size``. Without it the last number
            in ``conv_dim`` must be ``hidden_size``.
        projection_norm: Whether a layer norm follows the last front-end convolution, before ``projection``.
        positions: ``conv`` (wav2vec 2.0's convolutional embedding), ``sinusoidal`` (Whisper's) or ``none``.
        position_kernel: Kernel size of the positional convolution (``positions: conv``), in frames of the encoder.
        position_groups: Number of groups of the positional convolution; divides ``hidden_size``.
        norm_first: False for post-norm layers (BASE), True for pre-norm layers with a final norm (LARGE, Whisper).
        shared: All ``layers`` use the weights of one layer (ALBERT, Lan et al. 2020).
        encoder_stride: Number of front-end frames that are averaged into one frame for the encoder; 2 means 25 frames a
            second in the encoder. Each hidden state is repeated as often, so the output has the front end's frame rate
            (compare Zipformer's downsampling, Yao et al. 2024).
        causal: Frames depend on earlier audio only, so that a stream gives the same results as a file; requires
            ``logmel``.
        attention_context: Number of frames that a frame attends to in a layer of a causal student, itself included
            (frames of the encoder).
        targets: Teacher layers that the prediction layers imitate, counted from 1; empty for no prediction layers.
        target_size: Features of the teacher's hidden states.
        prediction_size: Hidden features of each prediction layer.

    Raises:
        ValueError: a wrong type or an impossible value; the message begins with the key.
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
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    projection_dropout: float = 0.0
    layerdrop: float = 0.0
    shared: bool = False
    encoder_stride: int = 1
    causal: bool = False
    attention_context: int = 100
    targets: list[int] = field(default_factory=lambda: [4, 8, 12])
    target_size: int = 768
    prediction_size: int = 768

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices()
        self._check_upper_limits()
        self._check_sizes()
        if self.causal:
            self._check_causal()
        if self.frontend == "logmel":
            _require(self.conv_norm != "group", "conv_norm: with frontend logmel it must be layer or none")
        for name in ("dropout", *DROPOUTS):
            _require(0.0 <= (getattr(self, name) or 0.0) < 1.0, f"{name}: must be in [0, 1)")
        _require(self.frame_shift <= MAX_SIZE, f"conv_stride: frames must be at most {MAX_SIZE} samples apart")
        _require(0.0 < self.normalize_epsilon < math.inf, "normalize_epsilon: must be positive and finite")
        _require(all(t > 0 for t in self.targets), "targets: must be positive: teacher layers are counted from 1")

    def _check_types(self) -> None:
        number = (int, float)
        expected = {"int": int, "bool": bool, "str": str, "float": number, "list[int]": list}
        expected["float | None"] = (*number, type(None))
        for f in fields(self):
            value = getattr(self, f.name)
            is_stray_bool = isinstance(value, bool) and f.type != "bool"  # Python's bool is an int
            is_expected = isinstance(value, expected[f.type]) and not is_stray_bool
            _require(is_expected, f"{f.name}: expected {f.type}, found '{value}'")
            if f.type == "list[int]":
                are_ints = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
                _require(are_ints, f"{f.name}: expected whole numbers, found {value}")

    def _check_choices(self) -> None:
        for name, choices in (("frontend", FRONTENDS), ("conv_norm", CONV_NORMS), ("positions", POSITIONS)):
            value = getattr(self, name)
            _require(value in choices, f"{name}: '{value}' is not one of {', '.join(choices)}")

    def _check_upper_limits(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "list[int]":
                _require(len(value) <= MAX_LAYERS, f"{f.name}: must have at most {MAX_LAYERS} numbers")
                _require(max(value, default=0) <= MAX_SIZE, f"{f.name}: every number must be at most {MAX_SIZE}")
            elif f.type == "int":
                limit = MAX_LAYERS if f.name == "layers" else MAX_SIZE
                _require(value <= limit, f"{f.name}: must be at most {limit}")

    def _check_sizes(self) -> None:
        lengths = {len(getattr(self, name)) for name in CONV_FIELDS}
        _require(len(lengths) == 1 and lengths != {0}, f"{', '.join(CONV_FIELDS)}: must have one length, at least 1")
        for name in CONV_FIELDS:
            _require(min(getattr(self, name)) > 0, f"{name}: every number must be positive")
        for name in SIZE_FIELDS:
            _require(getattr(self, name) > 0, f"{name}: must be positive")
        size = self.hidden_size
        _require(size % self.heads == 0, f"heads: {self.heads} does not divide hidden_size {size}")
        if self.positions == "conv":
            smallest = min(self.position_kernel, self.position_groups)
            _require(smallest > 0, "position_kernel, position_groups: must be positive")
            divides = size % self.position_groups == 0
            _require(divides, f"position_groups: {self.position_groups} does not divide hidden_size {size}")
        if self.positions == "sinusoidal":
            _require(size % 2 == 0, "hidden_size: must be even for sinusoidal positions")
        fits = self.projection or self.conv_dim[-1] == size
        _require(fits, f"projection: without it the last conv_dim must be hidden_size {size}")

    def _check_causal(self) -> None:
        _require(
            self.frontend == "logmel" and not self.normalize,
            "causal: requires frontend logmel and normalize false, because cnn and normalize use later audio",
        )
        _require(
            self.positions != "sinusoidal",
            "causal: requires positions conv or none, because sinusoids need a start, which a stream may not have",
        )
        covers_stride = all(k >= s for k, s in zip(self.conv_kernel, self.conv_stride, strict=True))
        _require(covers_stride, "causal: requires every conv_kernel to be at least its conv_stride")

    @property
    def frame_shift(self) -> int:
        """Samples at 16 kHz from one frame to the next."""
        shift = 160 if self.frontend == "logmel" else 1  # a log-mel frame every 10 ms
        for stride in self.conv_stride:
            shift *= stride
        return shift

    @property
    def first_centre(self) -> float:
        """Centre of what the first front-end frame is computed from, in samples; those of later frames follow at
        `frame_shift`. It may be negative: the first frame is then computed mostly from what precedes the utterance.
        """
        if self.frontend == "cnn":
            return (receptive_field(self.conv_kernel, self.conv_stride) - 1) / 2
        shift, centre = 160, -40.0 if self.causal else 0.0  # a causal window of 400 samples ends with its hop
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            first = stride - kernel if self.causal else -(kernel // 2)  # see `LogMelStem.frames_before`
            centre += (first + (kernel - 1) / 2) * shift
            shift *= stride
        return centre


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that the first output of a stack of convolutions without padding depends on."""
    samples, shift = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        samples += (kernel - 1) * shift
        shift *= stride
    return samples


def _size_files() -> dict[str, Path]:
    """Name of a size -> its file."""
    folder = Path(str(resources.files("distilled_student.configs"))) / "student"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def size_names() -> list[str]:
    """The named sizes that exist."""
    return list(_size_files())


def named_size(name: str) -> StudentConfig:
    """The configuration with this name: ``paper``, ``slim``, ``edge`` or ``tiny``. Reads a YAML file with PyYAML.

    ``student/paper``, the name that ``distilled-student configs list`` prints, is accepted too.

    Raises:
        ValueError: there is no such size.
    """
    import yaml  # imported here, so that a saved student needs torch alone

    files, name = _size_files(), name.removeprefix("student/")
    if name not in files:
        raise ValueError(f"{name}: is not a student size; the sizes are {', '.join(files)}{did_you_mean(name, files)}")
    return StudentConfig(**(yaml.safe_load(files[name].read_text(encoding="utf-8")) or {}))
