"""s3prl as the host: its command line, its upstreams and its runner with our training loop."""

from __future__ import annotations

from distilled_student.common.lazy_names import importer

_MODULES = {
    **dict.fromkeys(("main", "open_runner", "run"), "distilled_student.host.launch"),
    "register": "distilled_student.host.plugin",
}
__all__ = [*_MODULES]
__getattr__ = importer(__name__, _MODULES)  # `launch` checks a command before torch is imported
