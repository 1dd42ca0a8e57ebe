"""Where training stands in its epoch: every checkpoint holds it, and a resumed run continues with the next batch."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from distilled_student.common.processes import is_leader
from distilled_student.common.random_states import random_states, set_random_states


class EpochPosition:
    """The epoch, the batches of it that training has used, and the random states of the process.

    s3prl's runner saves none of these. The expert's state dict does: see ``get_extra_state`` of `torch.nn.Module`.
    """

    def __init__(self) -> None:
        self.epoch, self.used = 0, 0
        self._loaded: dict[str, Any] = {}  # the position in a checkpoint, until `begin`

    def begin(self, epoch: int) -> dict[str, Any]:
        """Begin an epoch, at the loaded position if that is in this epoch; returns what was loaded, for `restore`."""
        loaded, self._loaded = self._loaded, {}
        self.epoch, self.used = epoch, loaded["used"] if loaded.get("epoch") == epoch else 0
        return loaded

    def restore(self, loaded: dict[str, Any]) -> None:
        """Set the random states of the checkpoint; nothing must draw random numbers from here to the first batch."""
        if loaded and is_leader():  # a checkpoint has the random states of the leader only
            set_random_states(loaded["random"])

    def state(self) -> Tensor:
        """The position as JSON in ``(bytes,)`` uint8: code that reads state dicts expects tensors."""
        state = {"epoch": self.epoch, "used": self.used, "random": random_states()}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def load(self, state: Tensor) -> None:
        """Take the position from a checkpoint; an empty tensor stands for a checkpoint without one."""
        self._loaded = json.loads(bytes(state.tolist())) if len(state) else {}
