"""Names of optimizers and schedulers, read from the files of s3prl and torch: importing those takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path

from distilled_student.host.s3prl_names import s3prl_folder

HELPERS = ("optimizer", "scheduler", "grouped_parameters")  # s3prl's get_NAME that make neither of the two


def names_of(section: str) -> list[str]:
    """What ``name`` can be in the section ``optimizer`` or ``scheduler``: s3prl calls its function ``get_NAME``.

    Where s3prl is imported, also what a program has added to ``s3prl.optimizers`` or ``s3prl.schedulers``.
    """
    text = (s3prl_folder() / f"{section}s.py").read_text(encoding="utf-8")
    names = set(re.findall(r"^def get_(\w+)\(", text, re.MULTILINE))
    loaded = vars(sys.modules.get(f"s3prl.{section}s", object)).keys()
    names |= {name.removeprefix("get_") for name in loaded if name.startswith("get_")}
    return sorted(names - set(HELPERS))


@functools.cache
def torch_optimizer_names() -> list[str]:
    """The classes of optimizers in ``torch.optim``; empty if they cannot be read."""
    spec = importlib.util.find_spec("torch")
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders if (file := Path(folder, "optim", "__init__.py")).is_file()]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return sorted(set(re.findall(r"import ([A-Z]\w*) as", text)) - {"Optimizer"})
