"""Weights of public speech encoders, renamed to a student's names, and a student's weights renamed to HubertModel's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# What precedes an encoder's own names in models that contain one, and torchaudio's additional level within it.
PREFIX = r"(?:model\.)*(?:(?:hubert|wav2vec2)\.)?(?:(encoder\.)transformer\.)?"
# (pattern, replacement), first match wins: names of `transformers` and torchaudio for HuBERT and wav2vec 2.0, of
# `transformers` for Whisper, and of fairseq, as s3prl's converted checkpoints and its DistilHuBERT keep them.
NAMES = [
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"frontend.layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"frontend.layers.\1.norm."),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"frontend.layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.", r"frontend.layers.\1.norm."),
    (r"(?:encoder\.)?feature_projection\.layer_norm\.", "projection_norm."),
    (r"(?:encoder\.)?feature_projection\.projection\.", "projection."),
    (r"layer_norm\.(weight|bias)$", r"<layer_norm>.\1"),
    (r"post_extract_proj\.", "projection."),
    (r"encoder\.pos_conv(?:_embed)?\.(?:conv|0)\.weight_g$", "positions.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv(?:_embed)?\.(?:conv|0)\.weight_v$", "positions.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv(?:_embed)?\.(?:conv|0)\.", "positions.conv."),
    (r"encoder\.layer_norm\.", "norm."),
    (r"(?:encoder\.)?conv1\.", "frontend.layers.0.conv."),
    (r"(?:encoder\.)?conv2\.", "frontend.layers.1.conv."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:attention|self_attn)\.([qkv])_proj\.", r"layers.\1.self_attn.\2."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:attention|self_attn)\.out_proj\.", r"layers.\1.self_attn.out_proj."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:self_attn_layer_norm|layer_norm)\.", r"layers.\1.norm1."),
    (r"(?:encoder\.)?layers\.(\d+)\.final_layer_norm\.", r"layers.\1.norm2."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:fc1|feed_forward\.intermediate_dense)\.", r"layers.\1.linear1."),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:fc2|feed_forward\.output_dense)\.", r"layers.\1.linear2."),
    (r"output_layer\.0\.", "predictions.hidden."),
    (r"output_layer\.2\.layer\.", "predictions.outputs.0."),
]
# A student's names -> those of `transformers`' HubertModel. `hubert_weights` also splits attention's ``in_proj``.
HUBERT_NAMES = [
    (r"frontend\.layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"frontend\.layers\.(\d+)\.norm\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"projection_norm\.", "feature_projection.layer_norm."),
    (r"projection\.", "feature_projection.projection."),
    (r"positions\.", "encoder.pos_conv_embed."),
    (r"norm\.", "encoder.layer_norm."),
    (r"layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"layers\.(\d+)\.norm1\.", r"encoder.layers.\1.layer_norm."),
    (r"layers\.(\d+)\.norm2\.", r"encoder.layers.\1.final_layer_norm."),
    (r"layers\.(\d+)\.linear1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"layers\.(\d+)\.linear2\.", r"encoder.layers.\1.feed_forward.output_dense."),
]


def _rename(name: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        new, found = re.subn(f"^{pattern}", replacement, name)
        if found:
            return new
    return name


def student_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a public encoder's ``state_dict`` under a student's names; unknown names stay as they are.

    Query, key and value projections are joined into torch's ``in_proj``. Whisper's key projection has no bias: it
    becomes zero. DistilHuBERT's prediction layers, stacked in one tensor, become one linear layer each.
    """
    renamed = {_rename(re.sub(f"^{PREFIX}", r"\1", n), NAMES): value.detach().float() for n, value in state.items()}
    is_whisper = any(re.search(r"(^|\.)conv1\.weight$", name) for name in state)
    # the same name for two norms: fairseq's is before the projection, Whisper's after the last layer
    norm = "norm" if is_whisper else "projection_norm"
    renamed = {name.replace("<layer_norm>", norm): value for name, value in renamed.items()}
    for prefix in {n.removesuffix("q.weight") for n in renamed if n.endswith(".self_attn.q.weight")}:
        _join_projections(renamed, prefix, is_whisper)
    _split_prediction_layers(renamed)
    return renamed


def _join_projections(weights: dict[str, Tensor], prefix: str, is_whisper: bool) -> None:
    """Join query, key and value into ``in_proj``, in place.

    If one is missing or has the wrong shape, all stay as they are. `load_student` then reports them as unexpected.
    """
    names = [f"{prefix}{letter}.{kind}" for kind in ("weight", "bias") for letter in "qkv"]
    size = weights[names[0]].shape[:1]
    if is_whisper:
        weights.setdefault(f"{prefix}k.bias", torch.zeros(size))
    shapes = [weights[name].shape if name in weights else None for name in names]
    equal_matrices = len(set(shapes[:3])) == 1 and len(shapes[0]) == 2
    if equal_matrices and shapes[3:] == [size] * 3:
        joined = [weights.pop(name) for name in names]
        weights[f"{prefix}in_proj_weight"] = torch.cat(joined[:3])
        weights[f"{prefix}in_proj_bias"] = torch.cat(joined[3:])


def _split_prediction_layers(weights: dict[str, Tensor]) -> None:
    """Split DistilHuBERT's stacked ``(targets, in, out)`` and ``(1, 1, targets, out)`` in place, if they fit."""
    weight_name, bias_name = "output_layer.2.weight", "output_layer.2.bias"
    if weight_name not in weights or bias_name not in weights:
        return
    stacked, biases = weights[weight_name], weights[bias_name]
    if stacked.dim() == 3 and biases.shape == (1, 1, stacked.shape[0], stacked.shape[2]):
        del weights[weight_name], weights[bias_name]
        for i, (weight, bias) in enumerate(zip(stacked, biases[0, 0], strict=True)):
            weights[f"predictions.outputs.{i}.weight"] = weight.T.contiguous()
            weights[f"predictions.outputs.{i}.bias"] = bias


def hubert_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A student's weights under the names of `transformers`' HubertModel: the reverse of `student_weights`."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _rename(name, HUBERT_NAMES)
        if ".in_proj_" in new:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                named[new.replace(".in_proj_", f".{letter}_proj.")] = part
        else:
            named[new] = value
    return named
