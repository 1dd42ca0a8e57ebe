"""Which encoder a name means: a folder, a file, an s3prl upstream or a model on the `transformers` hub."""

from __future__ import annotations

from pathlib import Path

from distilled_student.checkpoints.folder import MODEL_TYPE, load_student, shipped_student
from distilled_student.checkpoints.foreign import CONFIG, PREPROCESSOR, PROCESSOR, WEIGHTS, read_normalization
from distilled_student.checkpoints.foreign_config import why_not_a_student
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json
from distilled_student.teachers.encoders import Encoder, StudentEncoder, TransformersEncoder
from distilled_student.teachers.s3prl_encoder import names_on_s3prl_hub, open_upstream


def shipped_teacher() -> Path:
    """The folder of the small teacher that is part of this package."""
    return Path(__file__).parents[1] / "assets" / "teacher"


def open_teacher(name: str | Path) -> Encoder:
    """The encoder that ``name`` means, in eval mode. For distillation `targets.Teacher` freezes it.

    Args:
        name: The first of these that exists:

            * ``shipped`` or ``teacher``: the small teacher that is part of this package;
            * ``distilled_student``: the student that is part of this package;
            * a folder or file that `load_student` reads;
            * a folder of another `transformers` encoder of waveforms;
            * the name of an s3prl upstream (``hubert_base``);
            * a name on the `transformers` hub (``facebook/hubert-base-ls960``).

    Raises:
        UserError: none of these, or it cannot be loaded or downloaded; says what to do instead.
    """
    name = str(name)
    shipped = {"shipped": shipped_teacher, "teacher": shipped_teacher, "distilled_student": shipped_student}
    path = shipped[name]() if name in shipped else Path(name)
    if path.exists():
        encoder = _open_path(path, name)
    elif "/" not in name and name in names_on_s3prl_hub():
        encoder = _open_s3prl(name)
    else:
        encoder = _open_path(_download(name), name)
    return encoder.eval()


def _cannot_load(name: str, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:160]}"
    message = f"teacher {name}: cannot be loaded ({reason})"
    if not Path(name).exists():
        message += ". Without a connection to its hub, download it on another machine and give the folder instead"
    return UserError(message)


def _open_path(path: Path, name: str) -> Encoder:
    """The encoder in a folder or file: with a student's network if possible, else with `transformers`' own."""
    try:
        if path.is_file():
            return StudentEncoder(load_student(path))
        values = read_json(path / CONFIG)
        if values.get("model_type") == MODEL_TYPE or why_not_a_student(values) is None:
            return StudentEncoder(load_student(path))
        return _open_transformers(path)
    except UserError as error:
        raise _cannot_load(name, error) from None


def _open_transformers(folder: Path) -> TransformersEncoder:
    import transformers

    try:
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False, weights_only=True).float()
    except Exception as error:  # a damaged folder, or one of another library, can raise anything
        raise UserError(f"{folder}: {type(error).__name__}: {str(error)[:160]}") from None
    if not hasattr(model.config, "conv_stride"):
        raise UserError(f"'{model.config.model_type}' is not a speech encoder of waveforms")
    return TransformersEncoder(model, read_normalization(folder)["normalize"])


def _open_s3prl(name: str) -> Encoder:
    try:
        return open_upstream(name)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise _cannot_load(name, error) from None


def _download(name: str) -> Path:
    """The folder of a model on the `transformers` hub, downloaded or from the local cache of the hub."""
    from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, CONFIG), str):
            model_info(name, timeout=10)  # fails at once, where snapshot_download would retry many times
        wanted = [CONFIG, PREPROCESSOR, PROCESSOR, f"{WEIGHTS}*", "model-*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob(f"{WEIGHTS}*")):
            snapshot_download(name, allow_patterns=["pytorch_model*"])
        return folder
    except Exception as error:  # of the network, of the hub or for the name: in each case there is no such teacher
        raise _cannot_load(name, error) from None
