"""Weights of public speech encoders under a student's names, so that one network runs and initialises from them all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distilled_student.config import StudentConfig

# (pattern, replacement), first match wins. Three families of names: `transformers` HuBERT and wav2vec 2.0,
# `transformers` Whisper, and fairseq's as s3prl's converted checkpoints keep them.
NAMES = [
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"frontend.layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"frontend.layers.\1.norm."),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"frontend.layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.", r"frontend.layers.\1.norm."),
    (r"feature_projection\.layer_norm\.", "projection_norm."),
    (r"feature_projection\.projection\.", "projection."),
    (r"layer_norm\.(weight|bias)$", r"<layer_norm>.\1"),
    (r"post_extract_proj\.", "projection."),
    (r"encoder\.pos_conv(?:_embed)?\.(?:conv|0)\.weight_g$", "positions.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv(?:_embed)?\.(?:conv|0)\.weight_v$", "positions.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv(?:_embed)?\.(?:conv|0)\.", "positions.conv."),
    (r"encoder\.layer_norm\.", "norm."),
    (r"conv1\.", "frontend.layers.0.conv."),
    (r"conv2\.", "frontend.layers.1.conv."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:attention|self_attn)\.([qkv])_proj\.", r"layers.\1.self_attn.\2."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:attention|self_attn)\.out_proj\.", r"layers.\1.self_attn.out_proj."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:self_attn_layer_norm|layer_norm)\.", r"layers.\1.norm1."),
    (r"(?:encoder\.)?layers\.(\d+)\.final_layer_norm\.", r"layers.\1.norm2."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:fc1|feed_forward\.intermediate_dense)\.", r"layers.\1.linear1."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:fc2|feed_forward\.output_dense)\.", r"layers.\1.linear2."),
]


def _rename(name: str) -> str:
    for pattern, replacement in NAMES:
        new, found = re.subn(f"^{pattern}", replacement, name)
        if found:
            return new
    return name


def student_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a public encoder's ``state_dict`` under a student's names; unknown ones keep theirs.

    Query, key and value projections become torch's one ``in_proj``; Whisper's keys have no bias, so theirs is zero.
    """
    renamed = {_rename(name): value.detach().float() for name, value in state.items()}
    # At the top level fairseq's layer_norm stands before the projection, Whisper's behind the last layer.
    whisper = "frontend.layers.0.conv.weight" in renamed and "conv1.weight" in state
    top = "norm" if whisper else "projection_norm"
    renamed = {name.replace("<layer_norm>", top): value for name, value in renamed.items()}
    for prefix in {n.removesuffix("q.weight") for n in renamed if n.endswith(".self_attn.q.weight")}:
        q, k, v = (renamed.pop(f"{prefix}{p}.weight") for p in "qkv")
        biases = [renamed.pop(f"{prefix}{p}.bias", torch.zeros(len(q))) for p in "qkv"]
        renamed[f"{prefix}in_proj_weight"] = torch.cat([q, k, v])
        renamed[f"{prefix}in_proj_bias"] = torch.cat(biases)
    return renamed


def student_config(config: Any) -> StudentConfig | None:
    """The student's configuration that is the network of a `transformers` configuration; None if there is none.

    WavLM's relative positions and data2vec's stacked position convolutions have no counterpart here.
    """
    if config.model_type == "whisper":
        size = config.d_model
        return StudentConfig(
            frontend="logmel",
            mel_bins=config.num_mel_bins,
            conv_dim=[size, size],
            conv_kernel=[3, 3],
            conv_stride=[1, 2],
            conv_bias=True,
            conv_norm="none",
            projection=False,
            projection_norm=False,
            hidden_size=size,
            layers=config.encoder_layers,
            heads=config.encoder_attention_heads,
            feed_forward=config.encoder_ffn_dim,
            norm_first=True,
            positions="sinusoidal",
            dropout=config.dropout,
            targets=[],
        )
    if config.model_type not in ("hubert", "wav2vec2"):
        return None
    return StudentConfig(
        conv_dim=list(config.conv_dim),
        conv_kernel=list(config.conv_kernel),
        conv_stride=list(config.conv_stride),
        conv_bias=config.conv_bias,
        conv_norm=config.feat_extract_norm,
        projection_norm=getattr(config, "feat_proj_layer_norm", True),
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        feed_forward=config.intermediate_size,
        norm_first=config.do_stable_layer_norm,
        position_kernel=config.num_conv_pos_embeddings,
        position_groups=config.num_conv_pos_embedding_groups,
        dropout=config.hidden_dropout,
        targets=[],
    )
