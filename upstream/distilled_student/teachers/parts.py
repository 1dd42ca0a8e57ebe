"""What the parts of an encoder are: two parts whose weights have the same shapes can compute different functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distilled_student.checkpoints.foreign_config import front_end_norm
from distilled_student.student.config import StudentConfig

# Part (front end, projection norm, projection, positions, first norm, layers) -> property -> value.
Parts = dict[str, dict[str, Any]]

FUTURE = "future frames"  # a property: whether a frame depends on later ones
CONVOLUTION, PLAIN = "one convolution", "plain"  # kinds of positions and of attention
# `transformers` models whose layers have plain attention
PLAIN_MODELS = ("hubert", "wav2vec2", "unispeech", "unispeech-sat", "data2vec-audio", "sew")


def parts_of_student(config: StudentConfig) -> Parts:
    """The parts of a student's network."""
    front_end = {
        "kind": config.frontend,
        "kernels": list(config.conv_kernel),
        "strides": list(config.conv_stride),
        "norm": config.conv_norm,
        "bias": config.conv_bias,
        "activation": "gelu",
        FUTURE: not config.causal,
    }
    positions: dict[str, Any] = {"kind": CONVOLUTION if config.positions == "conv" else config.positions}
    if config.positions == "conv":
        positions |= {"groups": config.position_groups, FUTURE: not config.causal}
    return {
        "front end": front_end,
        "projection norm": {"present": config.projection_norm},
        "projection": {"present": config.projection},
        "positions": positions,
        "first norm": {"norm": "pre" if config.norm_first else "post"},
        "layers": _layers(PLAIN, config.heads, "gelu", config.norm_first),
    }


def _layers(attention: str, heads: int, activation: str, norm_first: bool) -> dict[str, Any]:
    norm = "pre" if norm_first else "post"
    return {"attention": attention, "heads": heads, "activation": activation, "norm": norm}


def parts_of_transformers(values: Mapping[str, Any]) -> Parts:
    """The parts of a `transformers` encoder of waveforms, from the values of its configuration."""
    kind = values["model_type"]
    front_end = {
        "kind": "cnn",
        "kernels": list(values["conv_kernel"]),
        "strides": list(values["conv_stride"]),
        "norm": front_end_norm(values),
        "bias": values["conv_bias"],
        "activation": values["feat_extract_activation"],
        FUTURE: True,
    }
    norm_first = bool(values.get("do_stable_layer_norm"))
    attention = PLAIN if kind in PLAIN_MODELS else {"wavlm": "gated relative positions"}.get(kind, f"that of {kind}")
    if values.get("adapter_attn_dim"):
        attention = f"{attention}, with adapters"
    return {
        "front end": front_end,
        "projection norm": {"present": values.get("feat_proj_layer_norm", True)},
        "projection": {"present": True},
        "positions": _transformers_positions(values),
        # a conformer's encoder has one norm, after its last layer
        "first norm": {"norm": "pre" if norm_first or kind == "wav2vec2-conformer" else "post"},
        "layers": _layers(attention, values["num_attention_heads"], values["hidden_act"], norm_first),
    }


def _transformers_positions(values: Mapping[str, Any]) -> dict[str, Any]:
    kind, count = values["model_type"], values.get("num_conv_pos_embeddings")
    if kind == "data2vec-audio":
        return {"kind": f"{count} stacked convolutions"}
    if kind == "wav2vec2-conformer":
        return {"kind": f"{values.get('position_embeddings_type')}, in the attention"}
    if kind in ("sew", "sew-d"):
        return {"kind": "one convolution with a stride"}
    if values.get("conv_pos_batch_norm"):
        return {"kind": "one convolution with batch norm"}
    return {"kind": CONVOLUTION, "groups": values.get("num_conv_pos_embedding_groups"), FUTURE: True}


def parts_of_fairseq(model: nn.Module) -> Parts | None:
    """The parts of one of s3prl's models after fairseq's, from its modules; None if it is not built like them."""
    try:
        blocks, layer = model.feature_extractor.conv_layers, model.encoder.layers[0]
        convolutions = [block[0] for block in blocks]
        modules = [type(module).__name__ for module in blocks[0].modules()]
        norms = [kind for kind in ("group", "layer") if any(f"{kind.title()}Norm" in name for name in modules)]
        front_end = {
            "kind": "cnn",
            "kernels": [conv.kernel_size[0] for conv in convolutions],
            "strides": [conv.stride[0] for conv in convolutions],
            "norm": norms[0] if norms else "none",
            "bias": convolutions[0].bias is not None,
            "activation": _activation(blocks[0][-1]),
            FUTURE: True,
        }
        first = model.encoder.pos_conv[0]
        positions: dict[str, Any] = {"kind": f"{len(model.encoder.pos_conv)} stacked convolutions"}
        if isinstance(first, nn.Conv1d):
            positions = {"kind": CONVOLUTION, "groups": first.groups, FUTURE: True}
        attention, norm_first = layer.self_attn, bool(model.encoder.layer_norm_first)
        relative = getattr(attention, "has_relative_attention_bias", False) or getattr(attention, "gru_rel_pos", False)
        kind = "gated relative positions" if relative else PLAIN
        return {
            "front end": front_end,
            "projection norm": {"present": getattr(model, "layer_norm", None) is not None},
            "projection": {"present": getattr(model, "post_extract_proj", None) is not None},
            "positions": positions,
            "first norm": {"norm": "pre" if norm_first else "post"},
            "layers": _layers(kind, attention.num_heads, _activation(layer.activation_fn), norm_first),
        }
    except (AttributeError, TypeError, IndexError, KeyError):
        return None


def _activation(function: Any) -> str:
    """The name of an activation, a module or a function."""
    return str(getattr(function, "__name__", type(function).__name__)).lower()


def difference(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str | None:
    """How a part of the teacher differs from the student's, in words; None if it does not, or see `loses_future`."""
    for name, own in student.items():
        if (other := teacher.get(name)) != own and not (name == FUTURE and loses_future(teacher, student)):
            return f"{name}: teacher {other}, student {own}"
    return None


def loses_future(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> bool:
    """Whether the teacher's part depends on later audio and the student's does not.

    The weights are the same, each convolution only ends earlier, so they are a good start. Distillation does the rest.
    """
    return bool(teacher.get(FUTURE)) and student.get(FUTURE) is False
