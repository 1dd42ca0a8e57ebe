"""Which encoder a name means: a folder, a file, an s3prl upstream or a model on the `transformers` hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distilled_student.checkpoints.folder import MODEL_TYPE, load_student
from distilled_student.checkpoints.foreign import CONFIG, read_normalization
from distilled_student.checkpoints.foreign_config import why_not_a_student
from distilled_student.checkpoints.hub import ELSEWHERE, hub_folder, hub_revision
from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.files import read_json
from distilled_student.teachers.early_checks import WORD_ENCODER, teacher_path
from distilled_student.teachers.encoders import Encoder, StudentEncoder, TransformersEncoder
from distilled_student.teachers.ge2e import PACKAGE, find_weights_of_resemblyzer, read_ge2e
from distilled_student.teachers.onnx_encoder import OnnxEncoder
from distilled_student.teachers.s3prl_encoder import names_on_s3prl_hub, open_upstream
from distilled_student.teachers.speaker_encoder import SpeakerEncoder
from distilled_student.teachers.transformers_folder import load_model
from distilled_student.teachers.word_encoder import read_word_encoder
from distilled_student.teachers.xvector import read_xvector

UNUSED_WEIGHTS = r"masked_spec_embed$|(?:^|\.)adapter\."  # of `transformers` models: read in training only, or deleted


def open_teacher(name: str | Path) -> Encoder:
    """The encoder that ``name`` means, in eval mode. For distillation `targets.Teacher` freezes it.

    Args:
        name: The first of these that exists:

            * ``shipped`` or ``teacher``: the small teacher that is part of this package;
            * ``distilled_student``, ``edge`` or ``tiny``: the students that are part of this package;
            * ``openwakeword``: a network for words, with the weights in the installed package of that name;
            * a folder or file that `load_student` reads;
            * a folder of another `transformers` encoder of waveforms;
            * the name of an s3prl upstream (``hubert_base``);
            * a name on the `transformers` hub (``facebook/hubert-base-ls960``).

    Raises:
        UserError: none of these, or it cannot be loaded or downloaded; says what to do instead.
    """
    name = str(name)
    if name == WORD_ENCODER:
        return _open_word_encoder()
    path = teacher_path(name)
    if not path.exists() and "/" not in name and name in names_on_s3prl_hub():
        return _open_s3prl(name).eval()
    path = path if path.exists() else _hub_folder(name)
    encoder = _open_path(path, name)
    encoder.revision = hub_revision(path)
    return encoder.eval()


def open_speaker_encoder(name: str | Path) -> SpeakerEncoder:
    """The speaker encoder that ``name`` means, in eval mode.

    Args:
        name: One of these:

            * ``resemblyzer``: GE2E with the weights in the installed package of that name;
            * a ``.pt`` file with GE2E's weights in the same format;
            * an ONNX file, ``.onnx``;
            * a folder of a ``...ForXVector`` model of `transformers`, or its name on the hub.

    Raises:
        UserError: none of these, or it cannot be loaded or downloaded; says what to do instead.
    """
    name = str(name)
    path = find_weights_of_resemblyzer() if name == PACKAGE else Path(name)
    try:
        if path.is_file():
            encoder = OnnxEncoder(path) if path.suffix == ".onnx" else read_ge2e(path)
        else:
            path = path if path.is_dir() else hub_folder(name)
            encoder = read_xvector(path)
            encoder.revision = hub_revision(path)
    except UserError as error:
        raise UserError(f"teacher {name}: cannot be loaded ({error})") from None
    return encoder.eval()


def _cannot_load(name: str, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:160]}"
    message = f"teacher {name}: cannot be loaded ({reason})"
    if not Path(name).exists():
        message += f". {ELSEWHERE}"
    return UserError(message)


def _open_word_encoder() -> Encoder:
    try:
        return read_word_encoder().eval()
    except UserError as error:
        raise UserError(f"teacher {WORD_ENCODER}: cannot be loaded ({error})") from None


def _open_path(path: Path, name: str) -> Encoder:
    """The encoder in a folder or file: with a student's network if possible, else with `transformers`' own."""
    try:
        if path.is_file():
            return StudentEncoder(load_student(path))
        values = read_json(path / CONFIG)
        reason = why_not_a_student(values)
        if values.get("model_type") == MODEL_TYPE or reason is None:
            return StudentEncoder(load_student(path))
        return _open_transformers(path, values, reason)
    except UserError as error:
        raise _cannot_load(name, error) from None


def _open_transformers(folder: Path, values: dict[str, Any], why_not_a_student: str) -> TransformersEncoder:
    """Another encoder of `transformers`.

    Args:
        values: The values of ``config.json``.
        why_not_a_student: For the message if it is no encoder of waveforms either.
    """
    import transformers

    model = load_model(transformers.AutoModel, folder, UNUSED_WEIGHTS, str(folder))
    if model.main_input_name != "input_values" or not hasattr(model.config, "conv_stride"):
        raise UserError(f"'{model.config.model_type}' is not a speech encoder of waveforms; {why_not_a_student}")
    encoder = TransformersEncoder(model, read_normalization(folder, values)["normalize"]).eval()
    _check_frames(encoder, folder)
    return encoder


@torch.no_grad()
def _check_frames(encoder: TransformersEncoder, folder: Path) -> None:
    """Raise UserError unless the encoder has the layers and the frame shift that its configuration says."""
    try:
        states = encoder.encode(torch.zeros(1, encoder.shortest + 2 * encoder.frame_shift))
        found = [tuple(state.shape[1:]) for state in states]
    except Exception as error:  # a network that is no encoder can raise anything
        raise UserError(f"{folder}: is not a speech encoder of waveforms: {short_reason(error)}") from None
    if found != [(3, encoder.hidden_size)] * (encoder.num_layers + 1):
        kind = encoder.model.config.model_type
        raise UserError(f"{folder}: hidden states of '{kind}' have other lengths than its configuration says: {found}")


def _hub_folder(name: str) -> Path:
    try:
        return hub_folder(name)
    except UserError as error:
        raise UserError(f"teacher {error}") from None


def _open_s3prl(name: str) -> Encoder:
    try:
        return open_upstream(name)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise _cannot_load(name, error) from None
