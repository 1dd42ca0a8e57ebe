"""PreciseBN: batch norm statistics measured on the features of an evaluation, not averaged during training.

Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from distilled_student.multitask.heads import Standardize
from distilled_student.multitask.loader import Batch


@torch.no_grad()
def measure_statistics(
    norms: Mapping[str, Standardize], batches: Iterable[Batch], run: Callable[[Batch], object], cycles: int
) -> None:
    """Replace the running mean and variance of each task's batch norm by their average over some batches.

    Args:
        norms: The batch norm of each task that has one. Mode and momentum are restored at the end.
        batches: Training batches of all tasks.
        run: Runs the task of a batch, its batch norm included, on the features of an evaluation.
        cycles: Batches of each task that are used; fewer if ``batches`` has fewer.
    """
    before = {name: (norm.training, norm.momentum) for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.this_process_only = True  # only the leader evaluates: the other processes do not take part
        norm.train().momentum = None  # None makes torch average over all batches
    left = dict.fromkeys(norms, cycles)
    remaining = iter(batches)
    while any(left.values()) and (batch := next(remaining, None)) is not None:
        task = batch[1]
        if left.get(task):
            left[task] -= 1
            run(batch)
    for name, norm in norms.items():
        norm.training, norm.momentum = before[name]
        norm.this_process_only = False
