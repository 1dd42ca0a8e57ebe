"""Configurations of public speech encoders -> the `StudentConfig` of the same network, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distilled_student.student.config import MAX_LAYERS, StudentConfig

# Settings that a student does not have, with the value that a student's network corresponds to. A checkpoint with any
# other value has a different network and is refused.
TRANSFORMERS_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "activation_function": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
FAIRSEQ_FIXED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "attention_type": "original",
    "quantize_input": False,
    "pos_conv_depth": 1,
    "crop_seq_to_multiple": 1,
}
DISTILLER_FIXED = {**FAIRSEQ_FIXED, "task_emb_type": "expand-last", "out_layer_type": "expand-last"}
# The reverse: settings of a student that HubertModel does not have.
HUBERT_FIXED = {
    "frontend": "cnn",
    "projection": True,
    "positions": "conv",
    "shared": False,
    "encoder_stride": 1,
    "causal": False,
}


def _first_difference(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> str | None:
    for key, wanted in fixed.items():
        if values.get(key, wanted) != wanted:
            return f"{key}: '{values[key]}' is not supported by a student, which has {wanted}"
    return None


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(values[key], list | tuple):
        raise ValueError(f"{key}: expected a list, found {values[key]!r}")
    return list(values[key])


def front_end_norm(values: Mapping[str, Any]) -> str | None:
    """The norm in the front end of a `transformers` encoder, ``group`` or ``layer``; data2vec does not say its own."""
    return "layer" if values.get("model_type") == "data2vec-audio" else values.get("feat_extract_norm")


def why_not_a_student(values: Mapping[str, Any]) -> str | None:
    """Why no `StudentConfig` describes the network of a `transformers` configuration; None if one does.

    Two examples: a student has neither WavLM's relative positions nor data2vec's stacked position convolutions.
    """
    model_type = values.get("model_type")
    if model_type not in ("hubert", "wav2vec2", "whisper"):
        return f"model_type: '{model_type}' is not one of distilled_student, hubert, wav2vec2, whisper"
    return _first_difference(values, TRANSFORMERS_FIXED)


def config_from_transformers(values: Mapping[str, Any]) -> StudentConfig:
    """The configuration of a student with the network of a `transformers` configuration, without prediction layers.

    Raises:
        KeyError: a key is missing.
        ValueError: there is no such student; the message begins with the key.
    """
    if reason := why_not_a_student(values):
        raise ValueError(reason)
    return _config_from_whisper(values) if values["model_type"] == "whisper" else _config_from_hubert(values)


def _dropouts(values: Mapping[str, Any], dropout: str, projection: str | None, layerdrop: str) -> dict[str, Any]:
    """The dropout fields of `StudentConfig` from the keys of a foreign configuration; ``attention_dropout`` and
    ``activation_dropout`` have these names in all of them. None where they are equal to ``dropout``.
    """
    apart = {name: values.get(name) for name in ("attention_dropout", "activation_dropout")}
    return {
        "dropout": values[dropout],
        **{name: None if value == values[dropout] else value for name, value in apart.items()},
        "projection_dropout": values.get(projection, 0.0),
        "layerdrop": values.get(layerdrop, 0.0),
    }


def _config_from_whisper(values: Mapping[str, Any]) -> StudentConfig:
    size = values["d_model"]
    return StudentConfig(
        frontend="logmel",
        mel_bins=values["num_mel_bins"],
        conv_dim=[size, size],
        conv_kernel=[3, 3],
        conv_stride=[1, 2],
        conv_bias=True,
        conv_norm="none",
        projection=False,
        projection_norm=False,
        hidden_size=size,
        layers=values["encoder_layers"],
        heads=values["encoder_attention_heads"],
        feed_forward=values["encoder_ffn_dim"],
        norm_first=True,
        positions="sinusoidal",
        **_dropouts(values, "dropout", None, "encoder_layerdrop"),
        targets=[],
    )


def _config_from_hubert(values: Mapping[str, Any]) -> StudentConfig:
    return StudentConfig(
        conv_dim=_list(values, "conv_dim"),
        conv_kernel=_list(values, "conv_kernel"),
        conv_stride=_list(values, "conv_stride"),
        conv_bias=values["conv_bias"],
        conv_norm=values["feat_extract_norm"],
        projection_norm=values.get("feat_proj_layer_norm", True),  # false in DistilHuBERT, absent in older models
        hidden_size=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        feed_forward=values["intermediate_size"],
        norm_first=values["do_stable_layer_norm"],
        position_kernel=values["num_conv_pos_embeddings"],
        position_groups=values["num_conv_pos_embedding_groups"],
        **_dropouts(values, "hidden_dropout", "feat_proj_dropout", "layerdrop"),
        targets=[],
    )


def config_to_hubert(config: StudentConfig) -> dict[str, Any]:
    """The `transformers` HubertConfig of a student's network, without its prediction layers.

    Raises:
        ValueError: HubertModel has no such network; the message begins with the key.
    """
    for key, wanted in HUBERT_FIXED.items():
        if getattr(config, key) != wanted:
            raise ValueError(f"{key}: '{getattr(config, key)}' is not supported by HubertModel, which has {wanted}")
    if config.conv_norm == "none":
        raise ValueError("conv_norm: 'none' is not supported by HubertModel, which has group or layer")
    return {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "conv_dim": config.conv_dim,
        "conv_kernel": config.conv_kernel,
        "conv_stride": config.conv_stride,
        "conv_bias": config.conv_bias,
        "feat_extract_norm": config.conv_norm,
        "feat_proj_layer_norm": config.projection_norm,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "do_stable_layer_norm": config.norm_first,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout if config.attention_dropout is None else config.attention_dropout,
        "activation_dropout": config.dropout if config.activation_dropout is None else config.activation_dropout,
        "feat_proj_dropout": config.projection_dropout,
        "layerdrop": config.layerdrop,
        "apply_spec_augment": False,
        "mask_time_prob": 0.05,  # DistilHuBERT's; HubertModel has an embedding of masked frames only if it is not 0
    }


# Defaults of s3prl's configuration classes (upstream/hubert/hubert_model.py, upstream/distiller/model.py).
FAIRSEQ_DEFAULTS = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "layer_norm_first": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
}
DISTILLER_DEFAULTS = {
    **FAIRSEQ_DEFAULTS,
    "activation_dropout": 0.1,
    "encoder_layers": 1,
    "final_dim": 768,
    "out_layer_inter_dim": -1,
    "n_tasks": 12,
}
CONV_NORMS = {"default": "group", "layer_norm": "layer"}  # fairseq's extractor_mode -> conv_norm
_CONV_LIST = r"\[\s*((?:\(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\)\s*,?\s*)+)\](?:\s*\*\s*(\d+))?"


def parse_conv_layers(text: str) -> list[tuple[int, ...]]:
    """fairseq's description of a front end: a Python expression, which is parsed without running it.

    ``[(512,10,5)] + [(512,3,2)] * 4`` -> five tuples of width, kernel and stride.

    Raises:
        ValueError: any other expression.
    """
    if len(str(text)) > 1_000:  # matching can take time proportional to the square of the length
        raise ValueError("conv_feature_layers: has more than 1000 characters")
    if not re.fullmatch(rf"\s*{_CONV_LIST}(?:\s*\+\s*{_CONV_LIST})*\s*", str(text)):
        raise ValueError(f"conv_feature_layers: '{text}' is not of the form [(width,kernel,stride)] * n + ...")
    layers: list[tuple[int, ...]] = []
    for tuples, repeats in re.findall(_CONV_LIST, text):
        if len(repeats) > 3:
            raise ValueError(f"conv_feature_layers: {repeats} layers are more than a front end has")
        found = [tuple(map(int, re.findall(r"\d+", numbers))) for numbers in re.findall(r"\(.*?\)", tuples)]
        layers += found * int(repeats or 1)
    return layers


def _config_from_fairseq_keys(values: Mapping[str, Any], **more: Any) -> StudentConfig:
    layers = parse_conv_layers(values["conv_feature_layers"])
    if values["extractor_mode"] not in CONV_NORMS:
        raise ValueError(f"extractor_mode: '{values['extractor_mode']}' is not one of {', '.join(CONV_NORMS)}")
    return StudentConfig(
        conv_dim=[width for width, _, _ in layers],
        conv_kernel=[kernel for _, kernel, _ in layers],
        conv_stride=[stride for _, _, stride in layers],
        conv_bias=values["conv_bias"],
        conv_norm=CONV_NORMS[values["extractor_mode"]],
        projection=layers[-1][0] != values["encoder_embed_dim"],
        hidden_size=values["encoder_embed_dim"],
        layers=values["encoder_layers"],
        heads=values["encoder_attention_heads"],
        feed_forward=values["encoder_ffn_embed_dim"],
        norm_first=values["layer_norm_first"],
        position_kernel=values["conv_pos"],
        position_groups=values["conv_pos_groups"],
        **_dropouts(values, "dropout", "dropout_input", "encoder_layerdrop"),
        **more,
    )


def config_from_fairseq(model: Mapping[str, Any], task: Mapping[str, Any]) -> StudentConfig:
    """The configuration of a student with the network of fairseq's HuBERT or wav2vec 2.0, without prediction layers.

    Raises:
        ValueError: there is no such student; the message begins with the key.
    """
    if reason := _first_difference(model, FAIRSEQ_FIXED):
        raise ValueError(reason)
    values = {**FAIRSEQ_DEFAULTS, **model}
    normalize = task.get("normalize", False)
    return _config_from_fairseq_keys(values, normalize=normalize, normalize_epsilon=1e-5, targets=[])


def config_from_distiller(values: Mapping[str, Any]) -> StudentConfig:
    """The configuration of a student with the network of s3prl's DistillerModel, prediction layers included.

    Raises:
        ValueError: there is no such student; the message begins with the key.
    """
    if reason := _first_difference(values, DISTILLER_FIXED):
        raise ValueError(reason)
    values = {**DISTILLER_DEFAULTS, **values, "conv_bias": False}
    values["conv_feature_layers"] = values.get("extractor_conv_feature_layers", values["conv_feature_layers"])
    if values["n_tasks"] > MAX_LAYERS:
        raise ValueError(f"n_tasks: must be at most {MAX_LAYERS}")
    values.setdefault("pred_layer_id", list(range(1, values["n_tasks"] + 1)))
    size = values["out_layer_inter_dim"]
    return _config_from_fairseq_keys(
        values,
        projection_norm=False,
        targets=_list(values, "pred_layer_id"),
        target_size=values["final_dim"],
        prediction_size=size if size > 0 else values["encoder_embed_dim"],
    )
