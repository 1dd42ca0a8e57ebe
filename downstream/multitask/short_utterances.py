"""What happens with an utterance shorter than those of a task's training: silence follows it, or it is repeated.

`Filling` is the definition. Training and evaluation apply it to single utterances. `padded_rows` and `filled` are the
same for batches and in exported graphs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.common.effects import fill as repeated
from distilled_student.student.run_mode import is_exporting


def pad_to(waveform: Tensor, samples: int) -> Tensor:
    """``waveform (samples,)`` zero-padded at the end to at least ``samples``."""
    missing = samples - len(waveform)
    return F.pad(waveform, (0, missing)) if missing > 0 else waveform


class Filling(NamedTuple):
    """The length that a task brings shorter utterances to, and how.

    Attributes:
        samples: At 16 kHz.
        repeats: Whether a shorter utterance is repeated from its beginning; else zeros follow it.
    """

    samples: int
    repeats: bool = False

    def fill(self, waveform: Tensor) -> Tensor:
        """``waveform (samples,)``, brought to this length if it is shorter; a longer one is unchanged."""
        if self.repeats and len(waveform) < self.samples:
            return repeated(waveform, self.samples)
        return pad_to(waveform, self.samples)


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
    waveforms: Tensor, lengths: Tensor, sizes: Collection[int], shares_rows: bool, is_padded: bool = True
) -> Rows:
    """The rows of a batch for tasks that pad shorter utterances with silence to ``sizes`` samples.

    Silence at the end changes every frame of a student, and not all tasks pad: a shorter utterance therefore gets a
    further row for each size. A student whose frames do not depend on the silence after them (``shares_rows``) needs
    none.

    Args:
        waveforms: ``(batch, samples)``, zero beyond ``lengths (batch,)``.
        is_padded: Whether ``lengths`` may be less than ``samples``. If not, a graph can be exported only if
            ``shares_rows``; `filled` is for the others.
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
        else:  # ExecuTorch computes neither with such values nor the larger one of two lengths
            waveforms = F.pad(waveforms, (0, _is_less(waveforms.shape[1], size) * (size - waveforms.shape[1])))
        if shares_rows:
            lengths = lengths.clamp(min=size)
            continue
        is_short = lengths[:batch] < size
        further = is_short.nonzero()[:, 0]
        of_size[size] = torch.where(is_short, waveforms.shape[0] + is_short.cumsum(0) - 1, own)
        waveforms = torch.cat([waveforms, waveforms[further]])
        lengths = torch.cat([lengths, torch.full_like(further, size)])
    return Rows(waveforms, lengths, of_size)


def _is_less(samples: int, size: int) -> int:
    """1 if ``samples`` is less than ``size``, else 0, by operations that ExecuTorch has for lengths."""
    return 1 // (1 + samples // size)


class Filled(NamedTuple):
    """Utterances of one length, and which utterances of a batch need them; see `filled`.

    Attributes:
        waveforms: ``(rows, samples)``.
        rows: ``(rows,)``, the utterance in the batch of each row.
        is_needed: Whether the outputs of these rows replace those of the utterances: ``(rows,)``; of a graph for a
            single utterance 0 or 1.
    """

    waveforms: Tensor
    rows: Tensor
    is_needed: Tensor | int

    def put(self, outputs: Tensor, of_batch: Tensor) -> Tensor:
        """``outputs (rows, outputs)`` of these rows where they are needed, in ``of_batch (batch, outputs)``."""
        if isinstance(self.is_needed, Tensor) and not is_exporting():
            return of_batch.index_copy(0, self.rows, outputs)
        if isinstance(self.is_needed, Tensor):
            return torch.where(self.is_needed[:, None], outputs, of_batch)
        return torch.cat([of_batch, outputs]).narrow(0, self.is_needed, 1)  # ExecuTorch


def filled(
    waveforms: Tensor, lengths: Tensor, filling: Filling, shortest: int, is_padded: bool = True
) -> Filled | None:
    """The utterances of a batch that are shorter than ``filling``, filled; None if there are none.

    They are encoded apart from the batch. An exported graph has no branches: it always encodes all utterances a second
    time, but on ``shortest`` samples if no utterance is shorter than ``filling``.

    Args:
        waveforms: ``(batch, samples)``, zero beyond ``lengths (batch,)``.
        shortest: The fewest samples that the student encodes.
        is_padded: Whether ``lengths`` may be less than ``samples``. If not, the batch is a single utterance, and the
            graph is one for ExecuTorch.
    """
    size, is_short = filling.samples, lengths < filling.samples
    rows = torch.arange(waveforms.shape[0], device=waveforms.device)
    if not is_exporting():
        rows, samples = is_short.to(rows.device).nonzero()[:, 0], size
        if not len(rows):
            return None
        is_needed: Tensor | int = torch.ones_like(rows, dtype=torch.bool)
    elif is_padded:
        is_needed = is_short
        samples = torch.where(is_short.any(), size, shortest).item()
        torch._check(samples >= shortest)
        torch._check(samples <= size)
    else:
        is_needed = _is_less(waveforms.shape[1], size)
        samples = shortest + is_needed * (size - shortest)
    if is_exporting() and not is_padded:
        count: Tensor | int = waveforms.shape[1]
    else:
        count = lengths.to(rows.device)[rows][:, None].clamp(min=1)  # a graph may get 0, by which it cannot divide
    position = torch.arange(samples, device=rows.device)[None, :]
    if filling.repeats:
        position = position - count * (position // count)  # the remainder
        return Filled(waveforms[rows].gather(1, position.expand(rows.shape[0], -1)), rows, is_needed)
    within = position < count
    values = waveforms[rows].gather(1, (position * within).expand(rows.shape[0], -1))
    return Filled(values * within, rows, is_needed)
