"""Models in folders of `transformers`, loaded with all of their weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from distilled_student.checkpoints.weight_files import find_weights
from distilled_student.common.errors import UserError, short_reason


def load_model(auto_class: Any, folder: Path, unused: str, where: str, what: str = "") -> nn.Module:
    """The model in a folder, in float32.

    Args:
        auto_class: A class of `transformers` with ``from_pretrained``, such as ``AutoModel``.
        unused: Regular expression of the weights that may be missing, because nothing uses them.
        where: What the message about a folder that cannot be loaded begins with.
        what: What the message about missing weights says of the model.

    Raises:
        UserError: the folder is damaged or holds another model, or weights are missing.
    """
    try:
        model, loading = auto_class.from_pretrained(
            folder,
            variant=find_weights(folder).variant,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # a damaged folder, or one of another library, can raise anything
        raise UserError(f"{where}: {short_reason(error)}") from None
    # transformers gives random values to weights that are not in the file, with a warning
    if missing := sorted(name for name in loading["missing_keys"] if not re.search(unused, name)):
        names = f"{', '.join(missing[:3])}, {len(missing)} in all"
        raise UserError(f"{folder}: {what}weights are missing: {names}")
    return model.float()
