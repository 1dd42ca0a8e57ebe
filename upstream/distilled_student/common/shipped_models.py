"""The trained models that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

from distilled_student.common.errors import did_you_mean

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ASSETS / "models"
DEFAULT = "edge"


def shipped_models() -> list[str]:
    """The names of the models that ship, such as ``edge``."""
    return sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())


def other_models(name: str | Path) -> str:
    """The end of a message about a model that does not exist: those that ship, and the closest of their names."""
    return f"; {', '.join(shipped_models())} ship with the package{did_you_mean(name, shipped_models())}"


def model_path(name: str | Path) -> Path:
    """The folder of a model that ships; ``name`` as a path if it is another one, or if it exists here."""
    return MODELS / name if str(name) in shipped_models() and not Path(name).exists() else Path(name)
