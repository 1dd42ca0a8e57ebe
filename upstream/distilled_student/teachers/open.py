"""Teachers: any student, `transformers` encoder or s3prl upstream behind one interface.

An encoder is a module that maps ``(waveforms, lengths)`` to an `Encoded`; it has ``hidden_size``, ``num_layers`` and
``frame_shift``. For distillation `distilled_student.distillation.targets` freezes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distilled_student.checkpoints.folder import MODEL_TYPE, load_student
from distilled_student.checkpoints.foreign import CONFIG, PREPROCESSOR, WEIGHTS, normalization
from distilled_student.checkpoints.foreign_config import no_counterpart
from distilled_student.checkpoints.weight_names import student_weights
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json
from distilled_student.patches.apply import apply_patches
from distilled_student.student.frontend import normalize_waveforms
from distilled_student.student.lengths import mask_if_padded
from distilled_student.student.network import Student


class Encoded(NamedTuple):
    """``hidden_states``: ``layers + 1`` tensors ``(batch, frames, features)``; ``lengths (batch,)`` in frames."""

    hidden_states: Sequence[Tensor]
    lengths: Tensor


class StudentEncoder(nn.Module):
    """A network of the student's form: a student, HuBERT, wav2vec 2.0 or Whisper's encoder. Padding-proof."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.hidden_size, self.num_layers = student.config.hidden_size, student.config.layers
        self.frame_shift = student.config.frame_shift

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        output = self.student(waveforms, lengths)
        return Encoded(output.hidden_states, output.lengths)

    def weights(self) -> dict[str, Tensor]:
        """Parameters under a student's names."""
        return self.student.state_dict()

    def normalization(self) -> dict[str, Any]:
        """What its waveforms go through first, as fields of a student's configuration."""
        return {name: getattr(self.student.config, name) for name in ("normalize", "normalize_epsilon")}

    def settings(self) -> str:
        """All settings, as text."""
        return repr(self.student.config)

    def keep_layers(self, count: int) -> None:
        """Compute no more than the first ``count`` layers: none above, no predictions.

        Nor a final norm, which is the last layer's: hidden states below are from before it.
        """
        student = self.student
        if student.config.norm_first and count < student.config.layers:
            student.norm = nn.Identity()
        student.config = replace(student.config, layers=count, targets=[])
        del student.layers[count:]
        student.predictions = None


class EqualLengthEncoder(nn.Module):
    """An encoder whose own padding would change its result: each group of equal lengths is encoded by itself."""

    hidden_size: int
    num_layers: int
    frame_shift: int

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        """``(batch, samples)`` without padding -> hidden states."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        if mask_if_padded(lengths, waveforms.shape[1]) is None:
            states = self.encode(waveforms)
            return Encoded(states, torch.full((len(waveforms),), states[0].shape[1]))
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

    def normalization(self) -> dict[str, Any]:
        """What its waveforms go through first, as fields of a student's configuration."""
        return {}

    def settings(self) -> str:
        """All settings that the modules' own text does not show, as text."""
        return ""

    def keep_layers(self, count: int) -> None:
        """Compute no more than the first ``count`` layers, where their output is known not to depend on the rest."""


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
            waveforms = normalize_waveforms(waveforms)
        output = self.model(waveforms, output_hidden_states=True)
        # behind the final norm, which transformers 5 leaves out of hidden_states in pre-norm models
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def weights(self) -> dict[str, Tensor]:
        return student_weights(self.model.state_dict())

    def normalization(self) -> dict[str, Any]:
        return {"normalize": self.normalize}

    def settings(self) -> str:
        return f"{self.normalize} {self.model.config.to_json_string()}"

    def keep_layers(self, count: int) -> None:
        norm_first = getattr(self.model.config, "do_stable_layer_norm", None)
        if norm_first is None or count == self.num_layers:
            return  # of another make: who knows what stands behind its layers
        del self.model.encoder.layers[count:]
        if norm_first:
            self.model.encoder.layer_norm = nn.Identity()


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
        return student_weights(self.upstream.state_dict())

    def normalization(self) -> dict[str, Any]:
        settings = getattr(self.upstream, "task_cfg", None)  # of s3prl's HuBERT and wav2vec 2.0
        return {"normalize": bool(getattr(settings, "normalize", False)), "normalize_epsilon": 1e-5}


def _unloadable(name: str, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:160]}"
    hint = (
        ""
        if Path(name).exists()
        else ". Where its hub is out of reach, download it on another machine and give the folder instead of the name"
    )
    return UserError(f"teacher {name}: cannot be loaded ({reason}){hint}")


def _hub_folder(name: str) -> Path:
    """The folder of a name on the `transformers` hub, downloaded or from its cache."""
    from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, CONFIG), str):
            model_info(name, timeout=10)  # at once, before a loader's many retries
        wanted = [CONFIG, PREPROCESSOR, "processor_config.json", f"{WEIGHTS}*", "model-*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob(f"{WEIGHTS}*")):
            snapshot_download(name, allow_patterns=["pytorch_model*"])
        return folder
    except Exception as error:  # of the network, the hub or the name; each means that the teacher is not to be had
        raise _unloadable(name, error) from None


def _from_path(path: Path, name: str) -> nn.Module:
    """The encoder in a folder or file: through `load_student` where it is of a student's form."""
    try:
        values = {"model_type": MODEL_TYPE} if path.is_file() else read_json(path / CONFIG)
        if values.get("model_type") == MODEL_TYPE or no_counterpart(values) is None:
            return StudentEncoder(load_student(path))
        return _from_transformers(path)
    except UserError as error:
        raise _unloadable(name, error) from None


def _from_transformers(folder: Path) -> TransformersEncoder:
    import transformers

    try:
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False, weights_only=True).float()
    except Exception as error:  # whatever a damaged or foreign folder raises, it is that folder's fault
        raise UserError(f"{folder}: {type(error).__name__}: {str(error)[:160]}") from None
    if not hasattr(model.config, "conv_stride"):
        raise UserError(f"'{model.config.model_type}' is not a speech encoder on waveforms")
    return TransformersEncoder(model, normalization(folder)["normalize"])


def _from_s3prl(name: str) -> nn.Module:
    apply_patches()
    from s3prl import hub

    factory: Callable[..., nn.Module] = getattr(hub, name)
    try:
        return S3prlEncoder(factory())
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise _unloadable(name, error) from None


def _s3prl_names() -> list[str]:
    apply_patches()
    from s3prl import hub

    return hub.options()


def open_teacher(name: str | Path) -> nn.Module:
    """The encoder that ``name`` means, in eval mode.

    What `load_student` reads; else a folder of another `transformers` encoder; else an s3prl upstream's name
    (``hubert_base``); else a name on the `transformers` hub (``facebook/hubert-base-ls960``). ``shipped`` is the small
    teacher that comes with the package.

    Raises:
        UserError: none of these, or out of reach; says what to do instead.
    """
    name = str(name)
    path = Path(__file__).parents[1] / "assets" / "teacher" if name == "shipped" else Path(name)
    if path.exists():
        return _from_path(path, name).eval()
    if "/" not in name and name in _s3prl_names():
        return _from_s3prl(name).eval()
    return _from_path(_hub_folder(name), name).eval()
