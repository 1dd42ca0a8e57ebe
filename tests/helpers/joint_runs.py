"""Small joint trainings on the corpora of `helpers.trees`: their settings, and the command that trains with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from helpers.trees import tasks

RUNNER = {"gradient_clipping": 1.0, "gradient_accumulate_steps": 1, "log_step": 2, "eval_step": 2, "save_step": 2}
RUNNER |= {"max_keep": 9, "eval_dataloaders": ["dev"], "average": 0.9}


def joint_command(
    folder: Path, runner: dict[str, Any], groups: dict[str, dict] | None = None, **sections: Any
) -> list[str]:
    """Write ``config.yaml`` into ``folder``; returns the command of a training of ``edge`` without ``-p``.

    Args:
        folder: Also of the corpora, which are written if ``groups`` is None.
        runner: What is added to `RUNNER`.
        groups: Settings of the tasks; None: those of `helpers.trees.tasks`.
        sections: Further sections of the settings.
    """
    config = {
        "runner": RUNNER | runner,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-2},
        "downstream_expert": {"tasks": tasks(folder) if groups is None else groups},
        **sections,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = ["-m", "train", "-u", "distilled_student", "-f", "-d", "multitask", "--device", "cpu"]
    return [*start, "-c", str(folder / "config.yaml")]
