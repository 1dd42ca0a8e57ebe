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
)
from distilled_student.checkpoints.weight_names import hubert_weights, student_weights
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, read_safetensors, read_torch, write_files
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.common.untrusted import leads_outside
from distilled_student.student.config import StudentConfig
from distilled_student.student.network import Student

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, PREDICTIONS = "config.json", "model.safetensors", "predictions.safetensors"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

# Weights in these formats that do not belong to the encoder and are ignored: embeddings of masked frames, quantisers
# and heads of pre-training and fine-tuning, fixed sinusoids, Whisper's decoder. Any other weight that a student lacks
# is an error.
IGNORED_WEIGHTS = {
    "transformers": r"masked_spec_embed$|quantizer\.|project_q\.|project_hid\.|lm_head\.|projector\.|classifier\."
    r"|layer_weights|tdnn\.|feature_extractor\.(?:weight|bias)$|objective\.",
    "whisper": r"(?:encoder\.)?embed_positions\.|decoder\.|proj_out\.",
    "fairseq": r"mask_emb$|label_embs_concat$|final_proj\.|quantizer\.|project_q\.|target_glu\.",
}

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


def _checked_mapping(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{source}: is not a mapping")
    return value


def _checked_tensors(value: Any, source: str) -> dict[str, Tensor]:
    for name, tensor in _checked_mapping(value, source).items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{source}: {name}: is not a tensor")
        # a file of a few bytes can declare a tensor of any size
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{source}: {name}: the file does not store all values of this tensor")
    return value


def _read_folder_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The state dict in a `transformers` folder, and the file to name in messages."""
    whole, index, pickled = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json", folder / "pytorch_model.bin"
    if whole.is_file():
        return read_safetensors(whole), whole
    if index.is_file():
        return _read_shards(folder, index), index
    if pickled.is_file():
        return _checked_tensors(read_torch(pickled), str(pickled)), pickled
    raise UserError(f"{folder}: has no {whole.name}, {index.name} or {pickled.name}")


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    """The state dict in several files, which ``index`` lists."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index}: weight_map: missing, or not a mapping of weights to files")
    if outside := [name for name in shards.values() if leads_outside(name)]:
        raise UserError(f"{index}: weight_map: {outside[0]}: is outside the folder")
    state: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        state |= read_safetensors(folder / name)
    return state


def read_normalization(folder: Path) -> dict[str, Any]:
    """``normalize`` and ``normalize_epsilon`` from the preprocessor's settings in a `transformers` folder.

    `transformers` 5 may write them into ``processor_config.json``. Its default is to normalise.
    """
    values: Any = None
    file = folder / PREPROCESSOR
    if file.is_file():
        values = read_json(file)
    elif (file := folder / PROCESSOR).is_file():
        values = read_json(file).get("feature_extractor")
    if values is None:
        log.warning("%s: no %s; waveforms are not normalised", folder, PREPROCESSOR)
        return {"normalize": False}
    values = _checked_mapping(values, f"{file}: feature_extractor")
    return {
        "normalize": values.get("do_normalize", True),
        "normalize_epsilon": values.get("normalize_epsilon", 1e-7),  # our own key, see write_transformers
    }


def read_transformers(folder: Path) -> StudentCheckpoint:
    """HuBERT, wav2vec 2.0, DistilHuBERT or Whisper's encoder as saved by `transformers`, with or without a head.

    Prediction layers come from the additional file of `write_transformers`, if the folder has one.

    Raises:
        UserError: not such a folder, or a network that a student cannot have; one line naming file and key.
    """
    values = read_json(folder / CONFIG)
    model_type = values.get("model_type")
    config = _convert_config(f"{folder / CONFIG}: model_type {model_type}", config_from_transformers, values)
    state, file = _read_folder_weights(folder)
    is_whisper = model_type == "whisper"
    weights = _encoder_weights(state, "whisper" if is_whisper else "transformers")
    changes: dict[str, Any] = {} if is_whisper else read_normalization(folder)
    if (folder / PREDICTIONS).is_file():
        predictions = read_safetensors(folder / PREDICTIONS)
        changes |= _prediction_settings(folder / PREDICTIONS, predictions)
        weights |= {f"predictions.{name}": value.float() for name, value in predictions.items()}
    config = _convert_config(str(folder), lambda: replace(config, **changes))
    return StudentCheckpoint(config, weights, f"{file} (transformers' {model_type})")


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
    values = _checked_mapping(_checked_mapping(content["Config"], f"{source}: Config").get("distiller"), key)
    config = _convert_config(key, config_from_distiller, values)
    weights = student_weights(_checked_tensors(content["Distiller"], f"{source}: Distiller"))
    return StudentCheckpoint(config, weights, source)


def _from_fairseq(content: dict[str, Any], source: str) -> StudentCheckpoint:
    model, task = (_checked_mapping(content[key], f"{source}: {key}") for key in ("model_cfg", "task_cfg"))
    config = _convert_config(f"{source}: model_cfg", config_from_fairseq, model, task)
    state = _checked_tensors(content["model_weight"], f"{source}: model_weight")
    return StudentCheckpoint(config, _encoder_weights(state, "fairseq"), source)
