"""The trained models that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ASSETS / "models"
DEFAULT = "edge"


def shipped_models() -> list[str]:
    """The names of the models that ship, such as ``edge``."""
    return sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())


def model_path(name: str | Path) -> Path:
    """The folder of a model that ships; ``name`` as a path if it is another one, or if it exists here."""
    return MODELS / name if str(name) in shipped_models() and not Path(name).exists() else Path(name)
