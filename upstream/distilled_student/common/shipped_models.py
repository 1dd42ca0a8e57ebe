"""The trained models that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

from distilled_student.common.errors import did_you_mean

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ASSETS / "models"
DEFAULT = "edge"
MODEL_FILES = ("config.json", "*.ckpt", "*.onnx", "*.pte")  # a folder with one of these holds a model or a run


def shipped_models() -> list[str]:
    """The names of the models that ship, such as ``edge``."""
    return sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())


def other_models(name: str | Path) -> str:
    """The end of a message about a model that does not exist: those that ship, and the closest of their names."""
    return f"; {', '.join(shipped_models())} ship with the package{did_you_mean(name, shipped_models())}"


def model_path(name: str | Path) -> Path:
    """The folder of a model that ships, unless a model of this name is here; ``name`` as a path for all others."""
    path = Path(name)
    if str(name) not in shipped_models() or path.is_file():
        return path
    return path if any(any(path.glob(pattern)) for pattern in MODEL_FILES) else MODELS / name
