"""s3prl as the host: its command line, its upstreams and its runner with our training loop."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    **dict.fromkeys(("main", "open_runner", "run"), "distilled_student.host.launch"),
    "register": "distilled_student.host.plugin",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """The public names, each imported at its first use: `launch` checks a command before torch is imported."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_MODULES[name]), name)
