"""Foreign checkpoints as students: `transformers` folders, s3prl's DistilHuBERT and its converted fairseq files."""

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
    distiller_config,
    fairseq_config,
    hubert_config,
    transformers_config,
)
from distilled_student.checkpoints.weight_names import hubert_weights, student_weights
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, read_safetensors, read_torch, write_whole
from distilled_student.common.untrusted import leads_outside
from distilled_student.student.config import StudentConfig
from distilled_student.student.network import Student

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, PREDICTIONS = "config.json", "model.safetensors", "predictions.safetensors"
PREPROCESSOR = "preprocessor_config.json"

# What each format keeps beside the trunk: embeddings of masked frames, quantisers and heads of pre-training and
# fine-tuning, fixed sinusoids, Whisper's decoder. Anything else that a student lacks is an error.
BESIDE_TRUNK = {
    "transformers": r"masked_spec_embed$|quantizer\.|project_q\.|project_hid\.|lm_head\.|projector\.|classifier\."
    r"|layer_weights|tdnn\.|feature_extractor\.(?:weight|bias)$|objective\.",
    "whisper": r"(?:encoder\.)?embed_positions\.|decoder\.|proj_out\.",
    "fairseq": r"mask_emb$|label_embs_concat$|final_proj\.|quantizer\.|project_q\.|target_glu\.",
}

FAIRSEQ_HINT = ": as fairseq itself writes it; convert it first with s3prl's upstream/hubert or wav2vec2/convert.py"


class Foreign(NamedTuple):
    """A foreign checkpoint in a student's terms; ``where`` names its file and format in messages."""

    config: StudentConfig
    weights: dict[str, Tensor]
    where: str


def _configured(where: str, read: Callable[..., StudentConfig], *values: Any) -> StudentConfig:
    try:
        return read(*values)
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]}: missing") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _trunk(state: dict[str, Tensor], beside: str) -> dict[str, Tensor]:
    weights = student_weights(state)
    return {name: value for name, value in weights.items() if not re.match(BESIDE_TRUNK[beside], name)}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: is not a mapping")
    return value


def _tensors(value: Any, where: str) -> dict[str, Tensor]:
    if odd := [name for name, tensor in _mapping(value, where).items() if not isinstance(tensor, Tensor)]:
        raise UserError(f"{where}: {odd[0]}: is not a tensor")
    for name, tensor in value.items():  # a few bytes can be said to be any number of weights
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{where}: {name}: has not the weights that it says it has")
    return value


def _folder_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The state dict in a `transformers` folder and the file to name in messages."""
    whole, index, pickled = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json", folder / "pytorch_model.bin"
    if whole.is_file():
        return read_safetensors(whole), whole
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{index}: weight_map: missing, or not a mapping of weights to files")
        if outside := [name for name in shards.values() if leads_outside(name)]:
            raise UserError(f"{index}: weight_map: {outside[0]}: leads out of the folder")
        state: dict[str, Tensor] = {}
        for name in sorted(set(shards.values())):
            state |= read_safetensors(folder / name)
        return state, index
    if pickled.is_file():
        return _tensors(read_torch(pickled), str(pickled)), pickled
    raise UserError(f"{folder}: has no {whole.name}, {index.name} or {pickled.name}")


def normalization(folder: Path) -> dict[str, Any]:
    """``normalize`` and its epsilon, as the preprocessor's settings of a `transformers` folder say.

    `transformers` 5 may keep them within ``processor_config.json``. Its default is to normalise.
    """
    values: Any = None
    file = folder / PREPROCESSOR
    if file.is_file():
        values = read_json(file)
    elif (file := folder / "processor_config.json").is_file():
        values = read_json(file).get("feature_extractor")
    if values is None:
        log.warning("%s: no %s; waveforms are given as they are", folder, PREPROCESSOR)
        return {"normalize": False}
    values = _mapping(values, f"{file}: feature_extractor")
    return {
        "normalize": values.get("do_normalize", True),
        "normalize_epsilon": values.get("normalize_epsilon", 1e-7),  # ours; see write_transformers
    }


def read_transformers(folder: Path) -> Foreign:
    """HuBERT, wav2vec 2.0, DistilHuBERT or Whisper's encoder as `transformers` saves it, with or without a head.

    Prediction layers come from the file that `write_transformers` puts beside it, if there is one.

    Raises:
        UserError: not such a folder, or a network that no student is; one line naming file and key.
    """
    values = read_json(folder / CONFIG)
    kind = values.get("model_type")
    config = _configured(f"{folder / CONFIG}: model_type {kind}", transformers_config, values)
    state, file = _folder_weights(folder)
    weights = _trunk(state, "whisper" if kind == "whisper" else "transformers")
    settings: dict[str, Any] = {} if kind == "whisper" else normalization(folder)
    if (folder / PREDICTIONS).is_file():
        predictions = read_safetensors(folder / PREDICTIONS)
        settings |= _prediction_sizes(folder / PREDICTIONS, predictions)
        weights |= {f"predictions.{name}": value.float() for name, value in predictions.items()}
    changed = _configured(str(folder), lambda: replace(config, **settings))
    return Foreign(changed, weights, f"{file} (transformers' {kind})")


def _prediction_sizes(file: Path, predictions: dict[str, Tensor]) -> dict[str, Any]:
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
        raise UserError(f"{file}: does not hold prediction layers as save_student writes them ({error})") from None


def write_transformers(student: Student, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that `transformers`' ``AutoModel.from_pretrained`` reads as the same network, a HubertModel.

    Prediction layers, which HubertModel lacks, go into a file of their own. HubertModel's embedding of masked frames
    is never used without masking: zeros. A variance's epsilon other than `transformers`' is kept beside
    ``do_normalize``, where `transformers` ignores it and `read_transformers` does not.

    Raises:
        UserError: the student's network is none of HubertModel's; names the key.
    """
    from safetensors.torch import save

    config = student.config
    try:
        values = hubert_config(config)
    except ValueError as error:
        raise UserError(f"{folder}: cannot be a transformers folder: {error}") from None
    state = {name: value.detach().cpu().to(dtype) for name, value in student.state_dict().items()}
    predictions = {
        name.removeprefix("predictions."): state.pop(name).contiguous()
        for name in list(state)
        if name.startswith("predictions.")
    }
    trunk = {name: value.contiguous() for name, value in hubert_weights(state).items()}
    trunk["masked_spec_embed"] = torch.zeros(config.hidden_size, dtype=dtype)
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "padding_value": 0.0,
        "return_attention_mask": True,
        "do_normalize": config.normalize,
        "normalize_epsilon": config.normalize_epsilon,
    }
    contents = {
        WEIGHTS: save(trunk, metadata={"format": "pt"}),
        PREPROCESSOR: _json(preprocessor),
        CONFIG: _json({**values, "dtype": str(dtype).removeprefix("torch.")}),
    }
    if predictions:
        metadata = {"format": "pt", "targets": json.dumps(config.targets)}
        contents[PREDICTIONS] = save(predictions, metadata=metadata)
    else:
        (folder / PREDICTIONS).unlink(missing_ok=True)  # an earlier student's
    write_whole(folder, contents)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def read_checkpoint(file: Path) -> Foreign:
    """s3prl's DistilHuBERT ``.ckpt``, or HuBERT or wav2vec 2.0 as s3prl converts it from fairseq.

    Raises:
        UserError: neither of these, unsafe to read, or a network that no student is; one line naming file and key.
    """
    try:
        loaded = read_torch(file)
    except UserError as error:
        raise UserError(f"{error}{FAIRSEQ_HINT if ' fairseq.' in str(error) else ''}") from None
    keys = set(loaded) if isinstance(loaded, dict) else set()
    if {"Config", "Distiller"} <= keys:
        where = f"{file} (s3prl's DistilHuBERT)"
        values = _mapping(_mapping(loaded["Config"], f"{where}: Config").get("distiller"), f"{where}: Config.distiller")
        config = _configured(f"{where}: Config.distiller", distiller_config, values)
        return Foreign(config, student_weights(_tensors(loaded["Distiller"], f"{where}: Distiller")), where)
    if {"task_cfg", "model_cfg", "model_weight"} <= keys:
        where = f"{file} (fairseq's, converted by s3prl)"
        model, task = (_mapping(loaded[key], f"{where}: {key}") for key in ("model_cfg", "task_cfg"))
        config = _configured(f"{where}: model_cfg", fairseq_config, model, task)
        return Foreign(config, _trunk(_tensors(loaded["model_weight"], f"{where}: model_weight"), "fairseq"), where)
    hint = FAIRSEQ_HINT if "model" in keys and keys & {"args", "task_state"} else ""
    raise UserError(
        f"{file}: is neither s3prl's DistilHuBERT (Config, Distiller) nor its converted fairseq checkpoint (task_cfg, "
        f"model_cfg, model_weight); found {', '.join(sorted(map(str, keys))[:10]) or type(loaded).__name__}{hint}"
    )
