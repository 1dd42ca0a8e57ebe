"""What a checkpoint holds in addition to weights: where training stands in its epoch, and what the classes are.

A resumed run continues with the next batch, and its classes must have the same names and recordings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distilled_student.common.processes import is_leader
from distilled_student.common.random_states import random_states, set_random_states
from distilled_student.onnx.calibration import KEY, Calibration


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

    def state(
        self,
        classes: Mapping[str, Sequence[str]],
        recordings: Mapping[str, Sequence[str]],
        calibrations: Mapping[str, str],
    ) -> Tensor:
        """The position, and each task's classes, their recordings, and its calibration of speakers as JSON.

        As JSON in ``(bytes,)`` uint8, because state dicts hold tensors only.
        """
        state = {"epoch": self.epoch, "used": self.used, "random": random_states()}
        state |= {"classes": dict(classes), "recordings": dict(recordings)}
        state |= {KEY: dict(calibrations)} if calibrations else {}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def load(self, state: Tensor) -> None:
        """Take the position from a checkpoint; an empty tensor stands for a checkpoint without one."""
        self._loaded = _read(state)


def saved_classes(state: Tensor) -> dict[str, list[str]]:
    """The names of each task's classes in `EpochPosition.state`; empty for checkpoints of versions before 0.2.

    Raises:
        ValueError: they are not lists of text.
    """
    return _lists(state, "classes")


def saved_recordings(state: Tensor) -> dict[str, list[str]]:
    """The `BaseTask.recordings` of each task in `EpochPosition.state`; empty as in `saved_classes`.

    Raises:
        ValueError: they are not lists of text.
    """
    return _lists(state, "recordings")


def saved_calibrations(state: Tensor) -> dict[str, Calibration]:
    """The `BaseTask.speaker_calibration` of each task in `EpochPosition.state`; empty for earlier checkpoints.

    Raises:
        ValueError: they are damaged.
    """
    return {task: Calibration.from_json(text) for task, text in _read(state).get(KEY, {}).items()}


def _lists(state: Tensor, entry: str) -> dict[str, list[str]]:
    of_tasks = _read(state).get(entry, {})
    if not isinstance(of_tasks, dict) or not all(isinstance(values, list) for values in of_tasks.values()):
        raise ValueError(f"{entry} of the tasks are not lists")
    return {task: list(map(str, values)) for task, values in of_tasks.items()}


def _read(state: Tensor) -> dict[str, Any]:
    return json.loads(bytes(state.tolist())) if len(state) else {}
