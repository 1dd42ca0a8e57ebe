"""Models on the Hugging Face hub: found in the hub's local cache, or downloaded into it. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

from distilled_student.common.errors import UserError, short_reason

# What is fetched, in this order, until a group has given a file: weights of a repository are often there in several
# formats. The names without a star come with the first group.
SETTINGS_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "predictions.safetensors")
WEIGHT_GROUPS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("model.*.safetensors", "model.safetensors.index.*.json"),
    ("pytorch_model.*.bin", "pytorch_model.bin.index.*.json"),
)
ELSEWHERE = "Without a connection to its hub, download it on another machine and give the folder instead"


def may_be_on_hub(name: str) -> bool:
    """Whether a name that is no file or folder can be that of a model, ``owner/model``.

    If the first part is a folder here, the name is a wrong path.
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not Path(name).parent.is_dir()


def hub_folder(name: str) -> Path:
    """The folder of the model ``name`` in the hub's local cache, after a download where it is not there yet.

    Raises:
        UserError: there is no such model, or it cannot be downloaded.
    """
    from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, SETTINGS_FILES[0]), str):
            model_info(name, timeout=10)  # fails at once, where snapshot_download would retry many times
        for group in WEIGHT_GROUPS:
            folder = Path(snapshot_download(name, allow_patterns=[*SETTINGS_FILES, *group]))
            if any(path for pattern in group for path in folder.glob(pattern)):
                break
        return folder
    except Exception as error:  # of the network, of the hub or for the name: in each case there is no such model
        reason = short_reason(error)
        raise UserError(f"{name}: no such file or folder, and not found on the hub ({reason}). {ELSEWHERE}") from None


def hub_revision(folder: str | Path) -> str | None:
    """The commit of a model in the hub's local cache, ``.../snapshots/COMMIT``; None for any other folder."""
    folder = Path(folder)
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{4,40}", folder.name) else None
