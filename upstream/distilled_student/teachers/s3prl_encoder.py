"""Encoders of s3prl: its upstreams, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.checkpoints.weight_names import student_weights
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.patches.apply import apply_patches
from distilled_student.student.config import receptive_field
from distilled_student.teachers.encoders import EqualLengthEncoder
from distilled_student.teachers.parts import Parts, parts_of_fairseq

FRONT_END_GRADIENT = "feature_grad_mult"  # what s3prl's models multiply the gradient of their CNN by


class S3prlEncoder(EqualLengthEncoder):
    """An s3prl upstream."""

    def __init__(self, upstream: nn.Module) -> None:
        super().__init__()
        self.upstream = upstream
        for module in upstream.modules():
            for name in ("layerdrop", "encoder_layerdrop"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
            if hasattr(module, FRONT_END_GRADIENT):  # s3prl sets 0: no gradient reaches the CNN, even with -f
                setattr(module, FRONT_END_GRADIENT, 1.0)
            if hasattr(config := getattr(module, "config", None), "apply_spec_augment"):  # a model of transformers
                config.layerdrop, config.apply_spec_augment = 0.0, False
        was_training = upstream.training
        with torch.no_grad():
            states = self.encode(torch.zeros(1, SAMPLE_RATE))
        upstream.train(was_training)
        self.hidden_size, self.num_layers = states[-1].shape[2], len(states) - 1
        self.frame_shift = int(upstream.get_downsample_rates("hidden_states"))
        if parts := self.parts():
            front_end = parts["front end"]
            self.first_centre = (receptive_field(front_end["kernels"], front_end["strides"]) - 1) / 2

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        """As if silence followed an utterance shorter than 50 ms, as in s3prl's own nn/upstream.py."""
        waveforms = F.pad(waveforms, (0, max(0, SAMPLE_RATE // 20 - waveforms.shape[1])))
        return self.upstream(list(waveforms))["hidden_states"]

    def weights(self) -> dict[str, Tensor]:
        return student_weights(self.upstream.state_dict())

    def parts(self) -> Parts | None:
        found = (parts_of_fairseq(module) for module in self.upstream.modules())
        return next((parts for parts in found if parts is not None), None)

    def normalization(self) -> dict[str, Any]:
        task = getattr(self.upstream, "task_cfg", None)  # s3prl's HuBERT and wav2vec 2.0 have one
        return {"normalize": bool(getattr(task, "normalize", False)), "normalize_epsilon": 1e-5}


def names_on_s3prl_hub() -> list[str]:
    """The names that ``s3prl.hub`` opens. Imports s3prl, which takes seconds."""
    apply_patches()
    from s3prl import hub

    return hub.options()


def open_upstream(name: str) -> S3prlEncoder:
    """The upstream with this name, with its published weights, which may be downloaded.

    Raises:
        OSError, RuntimeError, ValueError, AssertionError, TypeError, AttributeError: it cannot be downloaded, or needs
            a checkpoint or a library.
    """
    apply_patches()
    from s3prl import hub

    factory: Callable[..., nn.Module] = getattr(hub, name)
    return S3prlEncoder(factory())
