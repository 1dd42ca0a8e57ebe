"""Configurations of public speech encoders as the student's whose network they describe, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distilled_student.student.config import MOST_LAYERS, StudentConfig

# What a student has no setting for, with the value that it has. Another value would be another network.
TRANSFORMERS_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "activation_function": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
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


def _first_difference(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> str | None:
    for key, wanted in fixed.items():
        if values.get(key, wanted) != wanted:
            return f"{key}: '{values[key]}' has no counterpart in a student, which has {wanted}"
    return None


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(values[key], list | tuple):
        raise ValueError(f"{key}: expected a list, found {values[key]!r}")
    return list(values[key])


def no_counterpart(values: Mapping[str, Any]) -> str | None:
    """Why the network of a `transformers` configuration is not of a student's form; None if it is.

    WavLM's relative positions and data2vec's stacked position convolutions, for two, have no counterpart here.
    """
    kind = values.get("model_type")
    if kind not in ("hubert", "wav2vec2", "whisper"):
        return f"model_type: '{kind}' is neither distilled_student nor hubert, wav2vec2 or whisper"
    return _first_difference(values, TRANSFORMERS_FIXED)


def transformers_config(values: Mapping[str, Any]) -> StudentConfig:
    """The student's configuration that is the network of a `transformers` configuration.

    Raises:
        KeyError: a key is missing.
        ValueError: there is no such student; the message begins with the key.
    """
    if reason := no_counterpart(values):
        raise ValueError(reason)
    if values["model_type"] == "whisper":
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
            dropout=values["dropout"],
            targets=[],
        )
    return StudentConfig(
        conv_dim=_list(values, "conv_dim"),
        conv_kernel=_list(values, "conv_kernel"),
        conv_stride=_list(values, "conv_stride"),
        conv_bias=values["conv_bias"],
        conv_norm=values["feat_extract_norm"],
        projection_norm=values.get("feat_proj_layer_norm", True),  # came with DistilHuBERT; false there
        hidden_size=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        feed_forward=values["intermediate_size"],
        norm_first=values["do_stable_layer_norm"],
        position_kernel=values["num_conv_pos_embeddings"],
        position_groups=values["num_conv_pos_embedding_groups"],
        dropout=values["hidden_dropout"],
        targets=[],
    )


def hubert_config(config: StudentConfig) -> dict[str, Any]:
    """The `transformers` HubertConfig whose network is the trunk of a student.

    Raises:
        ValueError: HubertModel has no such network; the message begins with the key.
    """
    fixed = {"frontend": "cnn", "projection": True, "positions": "conv"}
    fixed |= {"shared": False, "encoder_stride": 1, "causal": False}
    for key, wanted in fixed.items():
        if getattr(config, key) != wanted:
            raise ValueError(f"{key}: '{getattr(config, key)}' has no counterpart in HubertModel, which has {wanted}")
    if config.conv_norm == "none":
        raise ValueError("conv_norm: 'none' has no counterpart in HubertModel, which has group or layer")
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
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "feat_proj_dropout": 0.0,
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "mask_time_prob": 0.05,  # as DistilHuBERT's: above zero, HubertModel has an embedding of masked frames
    }


# Defaults of s3prl's configuration classes (upstream/hubert/hubert_model.py, upstream/distiller/model.py).
FAIRSEQ = {
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
}
DISTILLER = {**FAIRSEQ, "encoder_layers": 1, "final_dim": 768, "out_layer_inter_dim": -1, "n_tasks": 12}
_CONVOLUTIONS = r"\[\s*((?:\(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\)\s*,?\s*)+)\](?:\s*\*\s*(\d+))?"


def conv_layers(text: str) -> list[tuple[int, ...]]:
    """fairseq's description of a front end, a Python expression, read without running it.

    ``[(512,10,5)] + [(512,3,2)] * 4`` -> five tuples of width, kernel and stride. Raises ValueError for anything else.
    """
    if len(str(text)) > 1_000:  # a pattern can take the square of its length
        raise ValueError("conv_feature_layers: has more than 1000 characters")
    if not re.fullmatch(rf"\s*{_CONVOLUTIONS}(?:\s*\+\s*{_CONVOLUTIONS})*\s*", str(text)):
        raise ValueError(f"conv_feature_layers: '{text}' is not of the form [(width,kernel,stride)] * n + ...")
    layers: list[tuple[int, ...]] = []
    for block, times in re.findall(_CONVOLUTIONS, text):
        if len(times) > 3:
            raise ValueError(f"conv_feature_layers: {times} layers are more than a front end has")
        layers += [tuple(map(int, re.findall(r"\d+", one))) for one in re.findall(r"\(.*?\)", block)] * int(times or 1)
    return layers


def _fairseq_form(values: Mapping[str, Any], **more: Any) -> StudentConfig:
    layers = conv_layers(values["conv_feature_layers"])
    modes = {"default": "group", "layer_norm": "layer"}
    if values["extractor_mode"] not in modes:
        raise ValueError(f"extractor_mode: '{values['extractor_mode']}' is not one of {', '.join(modes)}")
    return StudentConfig(
        conv_dim=[width for width, _, _ in layers],
        conv_kernel=[kernel for _, kernel, _ in layers],
        conv_stride=[stride for _, _, stride in layers],
        conv_bias=values["conv_bias"],
        conv_norm=modes[values["extractor_mode"]],
        projection=layers[-1][0] != values["encoder_embed_dim"],
        hidden_size=values["encoder_embed_dim"],
        layers=values["encoder_layers"],
        heads=values["encoder_attention_heads"],
        feed_forward=values["encoder_ffn_embed_dim"],
        norm_first=values["layer_norm_first"],
        position_kernel=values["conv_pos"],
        position_groups=values["conv_pos_groups"],
        dropout=values["dropout"],
        **more,
    )


def fairseq_config(model: Mapping[str, Any], task: Mapping[str, Any]) -> StudentConfig:
    """The student's configuration that is the network of fairseq's HuBERT or wav2vec 2.0.

    Raises:
        ValueError: there is no such student; the message begins with the key.
    """
    if reason := _first_difference(model, FAIRSEQ_FIXED):
        raise ValueError(reason)
    normalize = task.get("normalize", False)
    return _fairseq_form({**FAIRSEQ, **model}, normalize=normalize, normalize_epsilon=1e-5, targets=[])


def distiller_config(values: Mapping[str, Any]) -> StudentConfig:
    """The student's configuration that is the network of s3prl's DistillerModel, prediction layers included.

    Raises:
        ValueError: there is no such student; the message begins with the key.
    """
    if reason := _first_difference(values, DISTILLER_FIXED):
        raise ValueError(reason)
    values = {**DISTILLER, **values, "conv_bias": False}
    values["conv_feature_layers"] = values.get("extractor_conv_feature_layers", values["conv_feature_layers"])
    size = values["out_layer_inter_dim"]
    if values["n_tasks"] > MOST_LAYERS:
        raise ValueError(f"n_tasks: needs a number of at most {MOST_LAYERS}")
    return _fairseq_form(
        values,
        projection_norm=False,
        targets=_list({"pred_layer_id": list(range(1, values["n_tasks"] + 1)), **values}, "pred_layer_id"),
        target_size=values["final_dim"],
        prediction_size=size if size > 0 else values["encoder_embed_dim"],
    )
