"""Names that huggingface_hub 1.0 removed and s3prl still imports."""

from __future__ import annotations

from typing import NoReturn

from distilled_student.common.errors import UserError


class _Removed:
    """Can be imported; any use is an error that names the option that needs it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise UserError(f"--hub huggingface, --push_to_hf_hub: need {self._name} of huggingface_hub before 1.0")

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):  # inspecting an object is not using it
            raise AttributeError(attribute)
        self()


def add_missing_names() -> None:
    """Give huggingface_hub the names that s3prl imports from it."""
    import huggingface_hub

    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, _Removed(name))
