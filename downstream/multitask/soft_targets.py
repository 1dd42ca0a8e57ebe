"""Soft targets: a finished run, such as a fine-tuned large teacher, says what a smaller model should answer.

Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531, section 2. Both get the same
augmented waveform, which Beyer et al., arXiv 2106.05237, found to work best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distilled_student.common.errors import UserError
from distilled_student.common.provenance import weights_fingerprint
from distilled_student.common.sample_range import skip_range_check


def soft_target_loss(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean divergence of the outputs' probabilities from those of the targets, at the temperature T.

    T^2 keeps the size of the gradient (section 2 of the paper). Both are ``(batch, classes)`` logits.
    """
    wanted, found = (F.log_softmax(x.float() / temperature, dim=1) for x in (targets, outputs))
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)


class RunTeacher:
    """A finished run whose keyword scores are the soft targets of another training. It is not trained, nor saved.

    Args:
        run: Folder of the run; its best checkpoint is used, see `find_checkpoint`.
        output_name: The `BaseTask.output_name` of the task that teaches.
        key: ``FILE: dotted.key`` of the setting, for messages.

    Raises:
        UserError: there is no such run, or it has no such task.
    """

    def __init__(self, run: str, output_name: str, key: str) -> None:
        from distilled_student.host.launch import open_runner
        from distilled_student.multitask.evaluate import find_checkpoint

        try:
            self.checkpoint = find_checkpoint(Path(run))
            with torch.random.fork_rng(devices=[]):  # the training's own weights must not depend on the teacher
                runner = open_runner(self.checkpoint, device="cpu")
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        self.upstream, self.featurizer, self.expert = runner.upstream.model, runner.featurizer.model, runner.expert
        tasks = getattr(self.expert, "tasks", {})
        self.task = next((name for name, task in tasks.items() if task.output_name == output_name), "")
        if not self.task:
            raise UserError(f"{key}: {run}: has no keyword task")
        for model in (self.upstream, self.featurizer, self.expert):
            model.requires_grad_(False).eval()
        skip_range_check(self.upstream)  # augmentation may exceed the range

    @property
    def settings(self) -> Any:
        """The settings of its task."""
        return self.expert.tasks[self.task].settings

    @torch.no_grad()
    def scores(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Waveforms ``(samples,)`` -> ``(batch, classes)`` logits, on the device of the waveforms."""
        for model in (self.upstream, self.featurizer, self.expert):
            model.to(waveforms[0].device)
        features = self.featurizer(waveforms, self.upstream(waveforms))
        return self.expert.outputs(self.task, features)

    def provenance(self) -> dict[str, Any]:
        """Its checkpoint, and the hashes of its weights."""
        parts = {"upstream": weights_fingerprint(self.upstream), "downstream": weights_fingerprint(self.expert)}
        return {"checkpoint": str(self.checkpoint), **parts}
