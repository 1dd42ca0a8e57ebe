"""Which device to use, and an error for a device that this machine does not have."""

from __future__ import annotations

import torch

from distilled_student.common.errors import UserError


def pick_device(wanted: str | None, where: str | None = None) -> str:
    """``wanted``, or for None the GPU if there is one.

    Args:
        where: What an error message begins with; default: ``--device WANTED``.

    Raises:
        UserError: an unknown device, or a GPU that this machine does not have.
    """
    where = where or f"--device {wanted}"
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"{where}: unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{where}: this machine has no such GPU; leave it out, or use cpu")
    return wanted
