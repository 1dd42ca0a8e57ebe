"""AdamW, with a learning rate of its own for the weights copied from the teacher, and the learning rate schedule."""

from __future__ import annotations

from collections.abc import Collection

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.heads import StudentWithHeads


def make_optimizer(model: StudentWithHeads, copied_names: Collection[str], config: DistillConfig) -> AdamW:
    """AdamW over a student's parameters, then those of the heads.

    ``copied_names``: names of the student's weights that were copied from the teacher, see `initialize`.
    """
    student, heads = model.student, list(model.heads.parameters())
    rate = config.copied_learning_rate
    if rate is None or not copied_names:
        groups = [{"params": [*student.parameters(), *heads]}]
    else:
        copied = [p for name, p in student.named_parameters() if name in copied_names]
        new = [p for name, p in student.named_parameters() if name not in copied_names]
        groups = [{"params": [*new, *heads]}, {"params": copied, "lr": rate}]
    adam = {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
    return AdamW(groups, lr=config.learning_rate, fused=True, **adam)


def make_scheduler(optimizer: AdamW, config: DistillConfig) -> LambdaLR:
    """Linear warm-up over a share of the steps, then linear decay to zero."""
    warmup = max(1, round(config.warmup * config.steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (config.steps - step) / max(1, config.steps - warmup)))

    return LambdaLR(optimizer, factor)
