"""What a task of your own imports, and the search for a task's module: ``tasks/NAME.py``, or one that settings name."""

from __future__ import annotations

import importlib
from types import ModuleType

from distilled_student.common.errors import UserError
from distilled_student.common.lazy_names import importer

# Public names and their modules; each is imported at its first use, since settings are checked without torch.
_TASKS = "distilled_student.multitask.tasks"
_MODULES = {
    **dict.fromkeys(("Item", "TrainingData", "EvaluationData", "BaseTask"), f"{_TASKS}.base"),
    **dict.fromkeys(("SHORTEST", "balanced_order", "samples_of"), f"{_TASKS}.base"),
    "pad_to": "distilled_student.multitask.short_utterances",
    **dict.fromkeys(("TaskSettings", "need_finite"), f"{_TASKS}.settings"),
    **dict.fromkeys(("HASH_RANGE", "hash_percentage"), "distilled_student.corpora.keywords"),
}
__all__ = [*_MODULES, "task_module"]
__getattr__ = importer(__name__, _MODULES)


def task_module(name: str, module: str | None, where: str) -> ModuleType:
    """The module of a task, with its classes ``Task`` and ``Settings``.

    Args:
        name: The task's name in the settings; without ``module`` it is ``tasks/NAME.py`` in this package.
        module: The dotted name of any importable module, for a task that is not in this package.
        where: ``FILE: dotted.key`` for messages.

    Raises:
        UserError: there is no such module, or it lacks one of the two classes.
    """
    path = module or f"{__name__}.{name}"
    try:
        found = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # the task's module exists, but a module that it imports does not
        raise UserError(f"{where}: no task of this name: there is no module {path}") from None
    for needed in ("Task", "Settings"):
        if not hasattr(found, needed):
            raise UserError(f"{where}: module {path} has no class {needed}")
    return found
