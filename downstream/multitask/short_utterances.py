"""Rows of a batch in which short utterances are padded for each task as in its training."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.student.run_mode import is_exporting


class Rows(NamedTuple):
    """What a student encodes for a batch of utterances. The first rows are the utterances themselves.

    Attributes:
        waveforms: ``(rows, samples)``.
        lengths: ``(rows,)``, the number of valid samples.
        of_size: A number of samples that a task pads short utterances to -> ``(batch,)``, the row of each utterance.
    """

    waveforms: Tensor
    lengths: Tensor
    of_size: dict[int, Tensor]


def padded_rows(
    waveforms: Tensor, lengths: Tensor, sizes: Collection[int], is_causal: bool, is_padded: bool = True
) -> Rows:
    """The rows of a batch for tasks that pad shorter utterances with silence to ``sizes`` samples.

    Silence at the end changes every frame of a student, and not all tasks pad: a shorter utterance therefore gets a
    further row for each size. A causal student needs none: its frames do not depend on the silence after them.

    Args:
        waveforms: ``(batch, samples)``, zero beyond ``lengths (batch,)``.
        is_causal: Whether the student is causal.
        is_padded: Whether ``lengths`` may be less than ``samples``. If not, the graph of a student that is not causal
            must be exported with at least the largest size as its smallest number of samples.
    """
    batch = waveforms.shape[0]
    own, of_size = torch.arange(batch, device=lengths.device), {}
    for size in sorted(sizes):
        of_size[size] = own
        if not is_exporting():
            if bool((lengths[:batch] >= size).all()):
                continue
            waveforms = F.pad(waveforms, (0, max(0, size - waveforms.shape[1])))
        elif is_padded:  # in a graph of ONNX the new number of samples is a value, which makes simpler shapes
            samples = torch.tensor(waveforms.shape[1]).clamp(min=size).item()
            torch._check(samples >= size)
            waveforms = F.pad(waveforms, (0, size))[:, torch.arange(samples)]
        elif is_causal:  # ExecuTorch computes neither with such values nor the larger one of two lengths
            is_less = 1 // (1 + waveforms.shape[1] // size)
            waveforms = F.pad(waveforms, (0, is_less * (size - waveforms.shape[1])))
        else:
            continue
        if is_causal:
            lengths = lengths.clamp(min=size)
            continue
        is_short = lengths[:batch] < size
        further = is_short.nonzero()[:, 0]
        of_size[size] = torch.where(is_short, waveforms.shape[0] + is_short.cumsum(0) - 1, own)
        waveforms = torch.cat([waveforms, waveforms[further]])
        lengths = torch.cat([lengths, torch.full_like(further, size)])
    return Rows(waveforms, lengths, of_size)
