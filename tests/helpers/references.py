"""Reference implementations with random weights, and checkpoints in their formats."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import distilled_student as ds

# Keys of `transformers`. BASE is HuBERT base with two layers instead of twelve.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
SIZES = {"small": SMALL, "base": BASE}
KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
# Norm of the front end and position of the norms in a layer: HuBERT base, HuBERT large, and the other two combinations.
FORMS = {
    "group-post": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer-pre": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "group-pre": {"feat_extract_norm": "group", "do_stable_layer_norm": True, "conv_bias": False},
    "layer-post": {"feat_extract_norm": "layer", "do_stable_layer_norm": False, "conv_bias": True},
}
FAMILIES = {
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
}


def perturbed(model: nn.Module) -> nn.Module:
    """The model in eval mode, with norms and biases that differ from 1 and 0: a test then detects mixed-up weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def transformers_model(family: str, **keys: Any) -> nn.Module:
    """A HubertModel or Wav2Vec2Model with random weights."""
    config, model = FAMILIES[family]
    torch.manual_seed(0)
    return perturbed(model(config(**keys)))


def save_transformers(model: nn.Module, folder: Path, normalize: bool = False) -> Path:
    """Write a `transformers` folder, including the settings of the preprocessor."""
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return folder


def torchaudio_model(size: dict[str, Any], form: dict[str, Any]) -> nn.Module:
    """torchaudio's wav2vec 2.0 model with random weights; torchaudio uses the same class for HuBERT."""
    import torchaudio

    torch.manual_seed(0)
    model = torchaudio.models.wav2vec2_model(
        extractor_mode=f"{form['feat_extract_norm']}_norm",
        extractor_conv_layer_config=list(zip(size["conv_dim"], KERNELS, STRIDES, strict=True)),
        extractor_conv_bias=form["conv_bias"],
        encoder_embed_dim=size["hidden_size"],
        encoder_projection_dropout=0.1,
        encoder_pos_conv_kernel=size["num_conv_pos_embeddings"],
        encoder_pos_conv_groups=size["num_conv_pos_embedding_groups"],
        encoder_num_layers=size["num_hidden_layers"],
        encoder_num_heads=size["num_attention_heads"],
        encoder_attention_dropout=0.1,
        encoder_ff_interm_features=size["intermediate_size"],
        encoder_ff_interm_dropout=0.1,
        encoder_dropout=0.1,
        encoder_layer_norm_first=form["do_stable_layer_norm"],
        encoder_layer_drop=0.1,
        aux_num_out=None,
    )
    return perturbed(model)


def _fairseq_keys(size: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    return {
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[form["feat_extract_norm"]],
        "encoder_layers": size["num_hidden_layers"],
        "encoder_embed_dim": size["hidden_size"],
        "encoder_ffn_embed_dim": size["intermediate_size"],
        "encoder_attention_heads": size["num_attention_heads"],
        "layer_norm_first": form["do_stable_layer_norm"],
        "conv_pos": size["num_conv_pos_embeddings"],
        "conv_pos_groups": size["num_conv_pos_embedding_groups"],
    }


def _conv_layers(width: int) -> str:
    return f"[({width},10,5)] + [({width},3,2)] * 4 + [({width}, 2, 2)] + [({width},2,2)]"


def save_distiller(
    file: Path, size: dict[str, Any], form: dict[str, Any], targets: tuple[int, ...] = (4, 8, 12), **changes: Any
) -> Path:
    """Write a DistilHuBERT checkpoint as s3prl's pre-training does, including pickled arguments."""
    ds.register()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    config = {
        **_fairseq_keys(size, form),
        "extractor_conv_feature_layers": _conv_layers(size["conv_dim"][0]),
        "final_dim": 24,
        "n_tasks": len(targets),
        "task_emb_type": "expand-last",
        "pred_layer_id": list(targets),
    }
    torch.manual_seed(0)
    model = perturbed(DistillerModel(DistillerConfig(config)))
    state = {
        "Distiller": model.state_dict(),
        "Config": {"distiller": {**config, **changes}, "task": {"sequence_length": 250_000}},
        "Args": argparse.Namespace(upstream="distiller", seed=1337),
        "Step": 200_000,
        "Optimizer": torch.optim.Adam(model.parameters()).state_dict(),
    }
    torch.save(state, file)
    return file


def save_fairseq(
    file: Path,
    family: str,
    size: dict[str, Any],
    form: dict[str, Any],
    normalize: bool = False,
    **changes: Any,
) -> Path:
    """Write fairseq's HuBERT or wav2vec 2.0 as s3prl's ``convert.py`` does, including the pre-training heads."""
    ds.register()
    from s3prl.upstream.hubert import hubert_model as hubert
    from s3prl.upstream.wav2vec2 import wav2vec2_model as wav2vec2

    keys = {
        **_fairseq_keys(size, form),
        "conv_bias": form["conv_bias"],
        "conv_feature_layers": _conv_layers(size["conv_dim"][0]),
    }
    torch.manual_seed(0)
    if family == "hubert":
        task = hubert.HubertPretrainingConfig(normalize=normalize)
        config = hubert.HubertConfig(label_rate=50.0, final_dim=8, **keys)
        model = hubert.HubertModel(config, task, [["a", "b", "c"]])
    else:
        task = wav2vec2.AudioPretrainingConfig(normalize=normalize)
        config = wav2vec2.Wav2Vec2Config(quantize_targets=True, final_dim=8, latent_vars=5, **keys)
        model = wav2vec2.Wav2Vec2Model(config)
    state = {
        "task_cfg": dataclasses.asdict(task),
        "model_cfg": {**dataclasses.asdict(config), **changes},
        "model_weight": perturbed(model).state_dict(),
    }
    torch.save(state if family == "wav2vec2" else {**state, "dictionaries_symbols": [["a", "b", "c"]]}, file)
    return file
