"""Checkpoints of others: `transformers` folders, s3prl's DistilHuBERT, and fairseq files that s3prl converted."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distilled_student.checkpoints.foreign_config import (
    config_from_distiller,
    config_from_fairseq,
    config_from_transformers,
    config_to_hubert,
    front_end_norm,
)
from distilled_student.checkpoints.weight_files import WEIGHTS, checked_mapping, checked_tensors, read_weights
from distilled_student.checkpoints.weight_names import hubert_weights, student_weights
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, read_safetensors, read_torch, write_files
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.student.config import StudentConfig
from distilled_student.student.network import Student
from distilled_student.student.positions import SinusoidalPositions

log = logging.getLogger(__name__)

CONFIG, PREDICTIONS = "config.json", "predictions.safetensors"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

# Weights in these formats that do not belong to the encoder and are ignored: embeddings of masked frames, quantisers
# and heads of pre-training and fine-tuning, fixed sinusoids, Whisper's decoder. Any other weight that a student lacks
# is an error.
IGNORED_WEIGHTS = {
    "transformers": r"masked_spec_embed$|quantizer\.|project_q\.|project_hid\.|lm_head\.|projector\.|classifier\."
    r"|layer_weights|tdnn\.|feature_extractor\.(?:weight|bias)$|objective\.|final_proj\.|adapter\.",
    "whisper": r"(?:encoder\.)?embed_positions\.|decoder\.|proj_out\.|projector\.|classifier\.|layer_weights",
    "fairseq": r"mask_emb$|label_embs_concat$|final_proj\.|quantizer\.|project_q\.|target_glu\.",
}

OTHER_RATE = f"the model is one of another rate than {SAMPLE_RATE} Hz, the rate of all audio here: use one of 16 kHz"
# The settings of Whisper's log-mel, besides the number of mel bins.
WHISPER_LOG_MEL = {"hop_length": 160, "n_fft": 400}

FAIRSEQ_HINT = ": was written by fairseq; convert it first with s3prl's upstream/hubert or wav2vec2/convert.py"


class StudentCheckpoint(NamedTuple):
    """A checkpoint as a student: weights under a student's names; ``source`` is its file and format, for messages."""

    config: StudentConfig
    weights: dict[str, Tensor]
    source: str


def _convert_config(source: str, convert: Callable[..., StudentConfig], *values: Any) -> StudentConfig:
    """``convert(*values)``, with its errors as UserError."""
    try:
        return convert(*values)
    except KeyError as error:
        raise UserError(f"{source}: {error.args[0]}: missing") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {error}") from None


def _encoder_weights(state: dict[str, Tensor], format: str) -> dict[str, Tensor]:
    weights = student_weights(state)
    return {name: value for name, value in weights.items() if not re.match(IGNORED_WEIGHTS[format], name)}


def _read_preprocessor(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The preprocessor's settings in a `transformers` folder, None without any, and their place for messages.

    `transformers` 5 may write them into ``processor_config.json``.

    Raises:
        UserError: they cannot be read, or the model is not one of audio at 16 kHz.
    """
    values: Any = None
    place = str(folder / PREPROCESSOR)
    if (folder / PREPROCESSOR).is_file():
        values = read_json(folder / PREPROCESSOR)
    elif (folder / PROCESSOR).is_file():
        values = read_json(folder / PROCESSOR).get("feature_extractor")
        place = f"{folder / PROCESSOR}: feature_extractor"
    if values is None:
        return None, place
    rate = checked_mapping(values, place).get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise UserError(f"{place}: sampling_rate: {rate}: {OTHER_RATE}")
    return values, place


def read_normalization(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """``normalize`` and ``normalize_epsilon`` from the preprocessor's settings in a `transformers` folder.

    The preprocessor's own default is to normalise. Without its settings, models with layer norm in the front end (the
    LARGE ones, WavLM LARGE, data2vec) are taken as trained on normalised waveforms, and others not, as in fairseq.

    Args:
        config: The values of ``config.json``.
    """
    values, _ = _read_preprocessor(folder)
    if values is None:
        normalize = front_end_norm(config) == "layer"
        why = f"as usual with feat_extract_norm: {front_end_norm(config)}"
        does = "are normalised" if normalize else "are not normalised"
        log.warning("%s: no %s; waveforms %s, %s", folder, PREPROCESSOR, does, why)
        return {"normalize": normalize}
    return {
        "normalize": values.get("do_normalize", True),
        "normalize_epsilon": values.get("normalize_epsilon", 1e-7),  # our own key, see write_transformers
    }


def _read_whispers_normalization(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """``normalize`` of Whisper's preprocessor, whose log-mel must be the student's. Raises UserError naming the key."""
    values, place = _read_preprocessor(folder)
    for key, wanted in {"feature_size": config["num_mel_bins"], **WHISPER_LOG_MEL}.items():
        if values is not None and values.get(key, wanted) != wanted:
            raise UserError(f"{place}: {key}: '{values[key]}' is not supported by a student, which has {wanted}")
    return {"normalize": bool(values.get("do_normalize"))} if values else {}


def read_transformers(folder: Path) -> StudentCheckpoint:
    """HuBERT, wav2vec 2.0, DistilHuBERT or Whisper's encoder as saved by `transformers`, with or without a head.

    Prediction layers come from the additional file of `write_transformers`, if the folder has one.

    Raises:
        UserError: not such a folder, or a network that a student cannot have; one line naming file and key.
    """
    values = read_json(folder / CONFIG)
    model_type = values.get("model_type")
    config = _convert_config(f"{folder / CONFIG}: model_type {model_type}", config_from_transformers, values)
    state, file = read_weights(folder)
    is_whisper = model_type == "whisper"
    changes: dict[str, Any]
    if is_whisper:
        _check_positions(state, file)
        changes = _read_whispers_normalization(folder, values)
    else:
        changes = read_normalization(folder, values)
    if values.get("add_adapter"):
        log.info("%s: the adapter after the last layer is left out: the layers are those before it", folder)
    weights = _encoder_weights(state, "whisper" if is_whisper else "transformers")
    if (folder / PREDICTIONS).is_file():
        predictions = read_safetensors(folder / PREDICTIONS)
        changes |= _prediction_settings(folder / PREDICTIONS, predictions)
        weights |= {f"predictions.{name}": value.float() for name, value in predictions.items()}
    config = _convert_config(str(folder), lambda: replace(config, **changes))
    return StudentCheckpoint(config, weights, f"{file} (transformers' {model_type})")


def _check_positions(state: dict[str, Tensor], file: Path) -> None:
    """Raise UserError if the positions of Whisper's encoder are not the sinusoids that a student computes."""
    for name, table in state.items():
        if not re.search(r"(?:^|encoder\.)embed_positions\.weight$", name) or name.endswith(
            "decoder.embed_positions.weight"
        ):
            continue
        if table.dim() != 2 or table.shape[1] % 2 or table.shape[1] < 4:
            continue  # the wrong width is reported with the other weights
        expected = SinusoidalPositions()(torch.zeros(1, *table.shape))[0]
        table = table.float()
        # published weights are rounded to half precision, and some files of float32 were made from these
        exact = {torch.float32: 1e-5, torch.float16: 2**-11, torch.bfloat16: 2**-8}
        if not any(
            torch.equal(table.to(dtype).float(), table) and float((table - expected).abs().max()) <= error
            for dtype, error in exact.items()
        ):
            apart = float((table - expected).abs().max())
            raise UserError(
                f"{file}: {name}: trained positions, up to {apart:.3g} from the sinusoids that a student has: "
                "this model cannot be read"
            )


def _prediction_settings(file: Path, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """The settings of prediction layers, from the file's metadata and the shapes of its weights."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    try:
        target_size, prediction_size = predictions["outputs.0.weight"].shape
        return {
            "targets": json.loads(metadata["targets"]),
            "target_size": target_size,
            "prediction_size": prediction_size,
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: does not contain prediction layers as written by save_student ({error})") from None


def write_transformers(student: Student, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that `transformers`' ``AutoModel.from_pretrained`` reads as the same network, a HubertModel.

    HubertModel has no prediction layers: they are written to a file of their own. Its embedding of masked frames, which
    is used only with masking, is zero. Its epsilon in the normalisation of waveforms is fixed: ours is written next to
    ``do_normalize``, where `transformers` ignores it and `read_transformers` finds it.

    Raises:
        UserError: HubertModel has no such network; names the key.
    """
    from safetensors.torch import save

    config = student.config
    try:
        values = config_to_hubert(config)
    except ValueError as error:
        raise UserError(f"{folder}: cannot be written as a transformers folder: {error}") from None
    encoder = {name: value.detach().cpu().to(dtype) for name, value in student.state_dict().items()}
    predictions = {
        name.removeprefix("predictions."): encoder.pop(name).contiguous()
        for name in list(encoder)
        if name.startswith("predictions.")
    }
    encoder = {name: value.contiguous() for name, value in hubert_weights(encoder).items()}
    encoder["masked_spec_embed"] = torch.zeros(config.hidden_size, dtype=dtype)
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "return_attention_mask": True,
        "do_normalize": config.normalize,
        "normalize_epsilon": config.normalize_epsilon,
    }
    contents = {
        WEIGHTS: save(encoder, metadata={"format": "pt"}),
        PREPROCESSOR: _json_bytes(preprocessor),
        CONFIG: _json_bytes({**values, "dtype": str(dtype).removeprefix("torch.")}),
    }
    if predictions:
        metadata = {"format": "pt", "targets": json.dumps(config.targets)}
        contents[PREDICTIONS] = save(predictions, metadata=metadata)
    else:
        (folder / PREDICTIONS).unlink(missing_ok=True)  # of another student that was saved here before
    write_files(folder, contents)


def _json_bytes(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def read_torch_checkpoint(file: Path) -> StudentCheckpoint:
    """s3prl's DistilHuBERT ``.ckpt``, or HuBERT or wav2vec 2.0 as s3prl converts it from fairseq.

    Raises:
        UserError: neither of these, unsafe to read, or a network that a student cannot have; one line naming file and
            key.
    """
    try:
        content = read_torch(file)
    except UserError as error:
        raise UserError(f"{error}{FAIRSEQ_HINT if ' fairseq.' in str(error) else ''}") from None
    keys = set(content) if isinstance(content, dict) else set()
    if {"Config", "Distiller"} <= keys:
        return _from_distiller(content, f"{file} (s3prl's DistilHuBERT)")
    if {"task_cfg", "model_cfg", "model_weight"} <= keys:
        return _from_fairseq(content, f"{file} (fairseq's, converted by s3prl)")
    hint = FAIRSEQ_HINT if "model" in keys and keys & {"args", "task_state"} else ""
    raise UserError(
        f"{file}: is neither s3prl's DistilHuBERT (Config, Distiller) nor its converted fairseq checkpoint (task_cfg, "
        f"model_cfg, model_weight); found {', '.join(sorted(map(str, keys))[:10]) or type(content).__name__}{hint}"
    )


def _from_distiller(content: dict[str, Any], source: str) -> StudentCheckpoint:
    key = f"{source}: Config.distiller"
    values = checked_mapping(checked_mapping(content["Config"], f"{source}: Config").get("distiller"), key)
    config = _convert_config(key, config_from_distiller, values)
    weights = student_weights(checked_tensors(content["Distiller"], f"{source}: Distiller"))
    return StudentCheckpoint(config, weights, source)


def _from_fairseq(content: dict[str, Any], source: str) -> StudentCheckpoint:
    model, task = (checked_mapping(content[key], f"{source}: {key}") for key in ("model_cfg", "task_cfg"))
    if (rate := task.get("sample_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise UserError(f"{source}: task_cfg: sample_rate: {rate}: {OTHER_RATE}")
    config = _convert_config(f"{source}: model_cfg", config_from_fairseq, model, task)
    state = checked_tensors(content["model_weight"], f"{source}: model_weight")
    return StudentCheckpoint(config, _encoder_weights(state, "fairseq"), source)
