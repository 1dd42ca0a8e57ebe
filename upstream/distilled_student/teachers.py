"""Teachers: any student folder, `transformers` encoder or s3prl upstream behind one interface.

An encoder is a module that maps ``(waveforms, lengths)`` to an `Encoded`; it has ``hidden_size``, ``num_layers`` and
``frame_shift``. `Teacher` freezes one for distillation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distilled_student.config import StudentConfig
from distilled_student.convert import student_config, student_weights
from distilled_student.errors import UserError
from distilled_student.lengths import conv_lengths, frame_mask, mask_if_padded
from distilled_student.storage import is_student, load_student
from distilled_student.student import Student

log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """``hidden_states``: ``layers + 1`` tensors ``(batch, frames, features)``; ``lengths (batch,)`` in frames."""

    hidden_states: Sequence[Tensor]
    lengths: Tensor


class StudentEncoder(nn.Module):
    """A network of the student's form: a student, HuBERT, wav2vec 2.0 or Whisper's encoder. Padding-proof."""

    def __init__(self, student: Student, normalize: bool = False) -> None:
        super().__init__()
        self.student = student
        self.normalize = normalize
        self.hidden_size, self.num_layers = student.config.hidden_size, student.config.layers
        self.frame_shift = student.config.frame_shift

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        if self.normalize:
            waveforms = normalize_waveforms(waveforms, lengths)
        output = self.student(waveforms, lengths)
        return Encoded(output.hidden_states, output.lengths)

    def weights(self) -> dict[str, Tensor]:
        """Parameters under a student's names."""
        return self.student.state_dict()


class EqualLengthEncoder(nn.Module):
    """An encoder whose own padding would change its result: each group of equal lengths is encoded by itself."""

    hidden_size: int
    num_layers: int
    frame_shift: int

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        """``(batch, samples)`` without padding -> hidden states."""
        raise NotImplementedError

    def frame_lengths(self, samples: Tensor, frames: int) -> Tensor:
        """Valid frames of utterances of ``samples``, at most ``frames``."""
        return torch.clamp(samples.div(self.frame_shift, rounding_mode="floor"), max=frames)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        if mask_if_padded(lengths, waveforms.shape[1]) is None:
            states = self.encode(waveforms)
            return Encoded(states, torch.full((len(waveforms),), states[0].shape[1], device=waveforms.device))
        groups: list[tuple[Tensor, Sequence[Tensor]]] = []
        for samples in lengths.unique().tolist():
            rows = (lengths == samples).nonzero()[:, 0]
            groups.append((rows, self.encode(waveforms[rows, :samples])))
        frames = max(states[0].shape[1] for _, states in groups)
        out = []
        for layer in range(len(groups[0][1])):
            padded = waveforms.new_zeros(len(waveforms), frames, groups[0][1][layer].shape[2])
            for rows, states in groups:
                padded[rows, : states[layer].shape[1]] = states[layer].to(padded.dtype)
            out.append(padded)
        frame_lengths = torch.zeros_like(lengths)
        for rows, states in groups:
            frame_lengths[rows] = states[0].shape[1]
        return Encoded(out, frame_lengths)

    def weights(self) -> dict[str, Tensor]:
        """Parameters under a student's names, as far as there are such."""
        return {}


class TransformersEncoder(EqualLengthEncoder):
    """A `transformers` encoder that takes waveforms and is not of the student's form: WavLM, data2vec and others."""

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize
        config = model.config
        config.layerdrop, config.apply_spec_augment = 0.0, False
        self.hidden_size, self.num_layers = config.hidden_size, config.num_hidden_layers
        self.frame_shift = 1
        for stride in config.conv_stride:
            self.frame_shift *= stride

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        if self.normalize:
            waveforms = normalize_waveforms(waveforms, None)
        output = self.model(waveforms, output_hidden_states=True)
        # behind the final norm, which transformers 5 leaves out of hidden_states in pre-norm models
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def weights(self) -> dict[str, Tensor]:
        return student_weights(self.model.state_dict())


class S3prlEncoder(EqualLengthEncoder):
    """An s3prl upstream."""

    def __init__(self, upstream: nn.Module) -> None:
        super().__init__()
        self.upstream = upstream
        for module in upstream.modules():
            for name in ("layerdrop", "encoder_layerdrop"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        was_training = upstream.training
        with torch.no_grad():
            states = self.encode(torch.zeros(1, 16_000))
        upstream.train(was_training)
        self.hidden_size, self.num_layers = states[-1].shape[2], len(states) - 1
        self.frame_shift = int(upstream.get_downsample_rates("hidden_states"))

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        return self.upstream(list(waveforms))["hidden_states"]

    def weights(self) -> dict[str, Tensor]:
        return student_weights({n.removeprefix("model."): v for n, v in self.upstream.state_dict().items()})


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples, as `transformers`' Wav2Vec2FeatureExtractor."""
    samples = waveforms.shape[1]
    keep = torch.ones_like(waveforms) if lengths is None else frame_mask(lengths, samples).to(waveforms.dtype)
    count = keep.sum(1, keepdim=True)
    centred = (waveforms - (waveforms * keep).sum(1, keepdim=True) / count) * keep
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


def _unloadable(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    hint = (
        ""
        if Path(name).is_dir()
        else (". Where its hub is out of reach, download it on another machine and give the folder instead of the name")
    )
    return UserError(f"teacher {name}: cannot be loaded ({type(error).__name__}: {reason}){hint}")


def _check_reach(name: str) -> None:
    """Raise UserError at once for a hub name that is neither cached nor in reach, before a loader's many retries."""
    from huggingface_hub import model_info, try_to_load_from_cache

    if Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        model_info(name, timeout=10)
    except Exception as error:  # of the network, the hub or the name; each means that the teacher is not to be had
        raise _unloadable(name, error) from None


def _from_transformers(name: str) -> nn.Module:
    import transformers

    _check_reach(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type == "whisper":
            whole = "WhisperEncoder" not in (config.architectures or [])
            kind = transformers.WhisperModel if whole else _whisper_encoder()
            model = kind.from_pretrained(name, dtype=torch.float32)
            model = model.get_encoder() if whole else model
        else:
            model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32)
    except Exception as error:  # whatever a damaged or foreign folder raises, it is that folder's fault
        raise _unloadable(name, error) from None
    normalize = config.model_type != "whisper" and _normalizes(name)
    form = student_config(config)
    if form is not None:
        return StudentEncoder(_as_student(form, model, name), normalize)
    if not hasattr(config, "conv_stride"):
        raise UserError(f"teacher {name}: '{config.model_type}' is not a speech encoder on waveforms")
    return TransformersEncoder(model, normalize)


def _whisper_encoder() -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder


def _as_student(form: StudentConfig, model: nn.Module, name: str) -> Student:
    student = Student(form)
    weights = student_weights(model.state_dict())
    # Not part of the forward pass here: the embedding of masked frames, and fixed sinusoids (made for any length).
    unused = {"masked_spec_embed", "embed_positions.weight"}
    try:
        student.load_state_dict({n: v for n, v in weights.items() if n not in unused})
    except RuntimeError as error:
        raise UserError(f"teacher {name}: weights do not fit its configuration: {error}") from None
    return student


def _normalizes(name: str) -> bool:
    """Whether the model expects normalised waveforms: `do_normalize` of its preprocessor, if it has one."""
    from transformers.utils import cached_file

    try:
        file = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    except OSError:
        file = None
    if file is None:
        log.warning("teacher %s: no preprocessor_config.json; waveforms are given as they are", name)
        return False
    return bool(json.loads(Path(file).read_text(encoding="utf-8")).get("do_normalize", False))


def _from_s3prl(name: str) -> nn.Module:
    from distilled_student import host

    host.register()
    from s3prl import hub

    factory: Callable[..., nn.Module] = getattr(hub, name)
    try:
        return S3prlEncoder(factory())
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise _unloadable(name, error) from None


def _s3prl_names() -> list[str]:
    from distilled_student import host

    host.register()
    from s3prl import hub

    return hub.options()


def open_teacher(name: str | Path) -> nn.Module:
    """The encoder that ``name`` means, in eval mode.

    A student folder; else a `transformers` folder; else an s3prl upstream's name (``hubert_base``); else a name on the
    `transformers` hub (``facebook/hubert-base-ls960``). ``shipped`` is the small teacher that comes with the package.

    Raises:
        UserError: none of these, or out of reach; says what to do instead.
    """
    name = str(name)
    path = Path(__file__).with_name("assets") / "teacher" if name == "shipped" else Path(name)
    if is_student(path):
        return StudentEncoder(load_student(path)).eval()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"teacher {name}: the folder has no config.json")
        return _from_transformers(name).eval()
    if path.exists():
        raise UserError(f"teacher {name}: is a file; expected a folder or a name")
    if "/" not in name and name in _s3prl_names():
        return _from_s3prl(name).eval()
    return _from_transformers(name).eval()


class Teacher(nn.Module):
    """A frozen encoder that gives the hidden states of chosen layers: always in eval mode, never with gradients."""

    def __init__(self, encoder: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        if not layers or max(layers) > encoder.num_layers or min(layers) < 1:
            raise UserError(f"targets: {list(layers)}: the teacher has layers 1 to {encoder.num_layers}")
        self.encoder, self.layers = encoder, list(layers)
        if isinstance(encoder, StudentEncoder) and not encoder.student.config.norm_first:
            del encoder.student.layers[max(layers) :]  # layers above the highest target would be computed for nothing
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: dropout in a teacher is a silent error (see ARMHuBERT)."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states ``(batch, targets, frames, features)`` and their lengths in frames."""
        encoded = self.encoder(waveforms, lengths)
        return torch.stack([encoded.hidden_states[layer] for layer in self.layers], dim=1), encoded.lengths


def check_rates(shift: int, student_shift: int) -> None:
    """Raise ValueError where frames ``shift`` and ``student_shift`` samples apart never meet."""
    if shift % student_shift and student_shift % shift:
        raise ValueError(f"a frame every {shift} and every {student_shift} samples: no rate is a multiple of the other")


def align(
    states: Tensor, lengths: Tensor, shift: int, student_lengths: Tensor, student_shift: int, frames: int
) -> tuple[Tensor, Tensor]:
    """Teacher frames at the student's times.

    Args:
        states: ``(batch, targets, teacher frames, features)``; ``lengths (batch,)`` of them valid, ``shift`` samples
            apart.
        student_lengths: ``(batch,)`` valid frames of the student, ``student_shift`` samples apart; ``frames`` with
            padding.

    Returns:
        ``(batch, targets, frames, features)`` and the lengths over which both are valid.

    Raises:
        ValueError: neither rate is a multiple of the other, or lengths differ by more than two frames.
    """
    check_rates(shift, student_shift)
    times = torch.arange(frames, device=states.device) * student_shift
    index = times.div(shift, rounding_mode="floor")
    slower = max(shift, student_shift)
    apart = (lengths * shift - student_lengths * student_shift).abs().max()
    if apart > 2 * slower:
        raise ValueError(f"teacher and student frames are {int(apart)} samples apart at the end of an utterance")
    valid = conv_lengths(lengths * shift, 1, student_shift)  # student frames whose time lies in a teacher's frame
    return states[:, :, index.clamp(max=states.shape[2] - 1)], torch.minimum(student_lengths, valid)
