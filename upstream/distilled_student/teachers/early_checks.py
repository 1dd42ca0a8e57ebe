"""Checks of a teacher's name that need no torch: a name that means nothing is reported within a second or two."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distilled_student.common.early_checks import CONFIG, is_torch_file
from distilled_student.common.errors import UserError, did_you_mean, short_reason
from distilled_student.common.files import read_json
from distilled_student.common.shipped_models import ASSETS, DEFAULT, MODELS, model_path, shipped_models

# names of upstreams and teachers that mean a folder in this package, whatever is here
SHIPPED = {"shipped": ASSETS / "teacher", "teacher": ASSETS / "teacher", "distilled_student": MODELS / DEFAULT}
EXPORT_EXTRA = "pip install 'distilled-student[export]'"
# keys of a config.json with the number of layers: of Whisper's encoder, of other models of transformers, of students
LAYER_KEYS = ("encoder_layers", "num_hidden_layers", "layers")
WORD_ENCODER = "openwakeword"
WORD_ENCODER_INSTALL = f"pip install --no-deps {WORD_ENCODER}==0.4.0"
REMEDY = "give a folder, the name of an s3prl upstream, or a name on the hub of transformers, OWNER/NAME"
SPEAKER_PACKAGE = "resemblyzer"
SPEAKER_ENCODERS = (
    f"{SPEAKER_PACKAGE}, a folder of a ...ForXVector model of transformers, an .onnx file, or one of GE2E"
)


def is_speaker_encoder(name: str) -> bool:
    """Whether the name alone says that it is a speaker encoder, without hidden states of layers."""
    return name == SPEAKER_PACKAGE or name.endswith(".onnx")


def _is_folder_name(name: str) -> bool:
    """Whether a name can only be a folder: names on a hub have at most one slash, inside."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def teacher_path(name: str) -> Path:
    """The folder or file that the name of a teacher means; it exists unless it is a name of s3prl or on the hub."""
    return SHIPPED.get(name) or model_path(name)


def check_teacher(name: str, where: str, upstreams: Collection[str]) -> int | None:
    """Check the name of a teacher, as `open_teacher` takes it.

    Args:
        where: What messages begin with, such as ``FILE: teacher``.
        upstreams: The names of s3prl's upstreams.

    Returns:
        The number of the teacher's layers; None if no ``config.json`` says it.

    Raises:
        UserError: there is no such folder, file, upstream or model on the hub, or it cannot be a teacher.
    """
    if is_speaker_encoder(name):
        raise UserError(f"{where}: {name}: is a speaker encoder, which has no hidden states of layers; {REMEDY}")
    if name == WORD_ENCODER:
        if find_spec(name) is None:
            raise UserError(f"{where}: {name}: is not installed; {WORD_ENCODER_INSTALL}")
        return 1
    path = teacher_path(name)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{where}: {name}: is not a model: the folder has no {CONFIG}")
        return _layers(read_json(path / CONFIG))
    if path.exists():
        if not is_torch_file(path):
            reason = f"neither a folder with {CONFIG} nor a checkpoint of torch"
            raise UserError(f"{where}: {name}: is not a model: {reason}")
        return None
    if _is_folder_name(name):
        raise UserError(f"{where}: {name}: no such file or folder")
    if name in upstreams:
        return None
    hint = did_you_mean(name, [*SHIPPED, *shipped_models(), WORD_ENCODER, *upstreams])
    return check_on_hub(name, where, hint or f"; {REMEDY}")


def check_speaker_encoder(name: str, where: str, upstreams: Collection[str] = ()) -> None:
    """Check the name of a speaker encoder, as `open_speaker_encoder` takes it.

    Args:
        where: What messages begin with, such as ``FILE: teachers[1].teacher``.
        upstreams: The names of s3prl's upstreams.

    Raises:
        UserError: there is no such package, file, folder or model on the hub, or it cannot be a speaker encoder.
    """
    path = Path(name)
    if name == SPEAKER_PACKAGE:
        if find_spec(name) is None:
            raise UserError(f"{where}: {name}: is not installed; pip install --no-deps {name}")
    elif path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{where}: {name}: is not a speaker encoder: the folder has no {CONFIG}")
        architectures = read_json(path / CONFIG).get("architectures") or []
        if not any(str(found).endswith("ForXVector") for found in architectures):
            reason = f"{CONFIG} names no ...ForXVector; for a teacher's hidden states give a list of layers as targets"
            raise UserError(f"{where}: {name}: is not a speaker encoder: {reason}")
    elif path.suffix == ".onnx" and path.exists():
        if missing := [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]:
            raise UserError(f"{where}: {name}: {' and '.join(missing)} not installed; {EXPORT_EXTRA}")
    elif path.exists():
        if not is_torch_file(path):
            raise UserError(f"{where}: {name}: is not a speaker encoder; give {SPEAKER_ENCODERS}")
    elif _is_folder_name(name) or name.endswith((".onnx", ".pt")):
        raise UserError(f"{where}: {name}: no such file or folder")
    elif name in (*SHIPPED, *shipped_models(), WORD_ENCODER, *upstreams):
        reason = "is an encoder of hidden states, not of speakers: it needs layers, targets: [1] or further ones"
        raise UserError(f"{where}: {name}: {reason}")
    else:
        check_on_hub(name, where, did_you_mean(name, [SPEAKER_PACKAGE]) or f"; give {SPEAKER_ENCODERS}")


def _layers(values: dict[str, Any]) -> int | None:
    return next((values[key] for key in LAYER_KEYS if isinstance(values.get(key), int)), None)


def check_on_hub(name: str, where: str, hint: str) -> int | None:
    """`check_teacher` of a model on the hub of transformers, or in the local cache of the hub.

    ``hint``: the end of the message about a name that can be meant in another way.
    """
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        if isinstance(cached := try_to_load_from_cache(name, CONFIG), str):
            return _layers(read_json(Path(cached)))
        model_info(name, timeout=10)
    except UserError:
        raise
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{where}: {name}: no such file or folder, s3prl upstream or model on the hub{hint}") from None
    except Exception as error:  # of the network: any exception
        is_offline = isinstance(error, OfflineModeIsEnabled)
        reason = "is switched off (HF_HUB_OFFLINE)" if is_offline else f"cannot be reached ({short_reason(error, 80)})"
        raise UserError(
            f"{where}: {name}: no such file or folder or s3prl upstream, and the hub {reason}{hint}"
        ) from None
    return None
