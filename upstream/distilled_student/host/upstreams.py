"""The two s3prl upstreams of this package: ``distilled_student`` and ``teacher``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distilled_student.checkpoints.folder import load_student, shipped_student
from distilled_student.common.audio import MAX_ENCODED_SECONDS, SAMPLE_RATE
from distilled_student.student.network import Student
from distilled_student.teachers.open import open_teacher

SINGLE = ("last_hidden_state", "concatenated")  # features that are no list


def match_host(x: Tensor, lengths: Tensor, samples: Sequence[int], shift: int) -> Tensor:
    """Give each utterance the ``ceil(samples / shift)`` frames that s3prl takes from it, repeating its last valid one.

    s3prl counts more frames than a front end makes (its runner rounds, its ``S3PRLUpstream`` rounds up): alone an
    utterance would lack them, in a batch they would be padding. Repeating is what ``S3PRLUpstream`` does.

    ``x (batch, frames, features)``, ``lengths`` on the CPU -> ``(batch, max ceil(samples / shift), features)``; behind
    the frames of an utterance is what was there.
    """
    expected = torch.tensor([-(-n // shift) for n in samples])
    x = F.pad(x, (0, 0, 0, int(expected.max()) - x.shape[1]))
    lacking = torch.arange(x.shape[1])
    lacking = (lacking >= lengths[:, None]) & (lacking < expected[:, None])
    if not lacking.any():
        return x
    rows, places = (index.to(x.device, non_blocking=True) for index in lacking.nonzero(as_tuple=True))
    last = (lengths.clamp(min=1) - 1).to(x.device, non_blocking=True)[rows]
    return x.index_put((rows, places), x[rows, last])


def _pieces(wav: Tensor, frames: int, shift: int) -> Sequence[Tensor]:
    """``(samples,)`` in the fewest pieces of at most ``frames``, all of the same number of frames but the last."""
    total = -(-len(wav) // shift)
    return wav.split(-(-total // -(-total // frames)) * shift)


def _joined(parts: Sequence[dict[str, Any]], dim: int = 0) -> dict[str, Any]:
    """Features by name, of pieces along time (``dim`` 1) or of utterances (0), which are zero-padded to the longest."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(tensors, dim=1) if dim else pad_sequence([x[0] for x in tensors], batch_first=True)

    of = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: join(x) if name in SINGLE else [join(y) for y in zip(*x, strict=True)] for name, x in of.items()}


class Upstream(nn.Module):
    """What both share: list of waveforms in, padded features of s3prl's lengths out.

    Beside the named lists: ``last_hidden_state``, and ``concatenated``, all hidden states side by side, from which each
    task's head takes the layers it needs where a weighted sum is one for all tasks.
    """

    frame_shift: int
    selected: str | None = None  # the only features that are asked for, where that is known

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples at 16 kHz per frame, the same for every key."""
        return self.frame_shift

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        """Named lists of ``(batch, frames, features)`` and lengths in frames."""
        raise NotImplementedError

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """``wavs``: 1-D waveforms at 16 kHz -> features by name; see s3prl's upstream contract.

        In eval mode an utterance longer than `MAX_ENCODED_SECONDS` is encoded in equal pieces of at most that, one at
        a time, so that memory does not grow with its length, but for the features that are returned. Attention, norms
        and the convolutions do not reach over the borders of a piece; each has the frames that s3prl's contract wants
        of it, and so has the whole. Batches without such an utterance are encoded as they are.
        """
        frames = MAX_ENCODED_SECONDS * SAMPLE_RATE // self.frame_shift  # whole ones, so that the pieces' frames add up
        if self.training or max(map(len, wavs)) <= frames * self.frame_shift:
            return self._features(wavs)
        return _joined([_joined([self._features([p]) for p in _pieces(w, frames, self.frame_shift)], 1) for w in wavs])

    def _features(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """A batch, at once."""
        samples = [len(wav) for wav in wavs]
        lengths = torch.tensor(samples)  # on the CPU, see Student.forward
        found, frames = self.encode(pad_sequence(list(wavs), batch_first=True), lengths)
        found["last_hidden_state"] = found["hidden_states"][-1:]
        if self.selected in (None, "concatenated"):
            found["concatenated"] = [torch.cat(found["hidden_states"], dim=2)]
        names = found if self.selected is None else [self.selected]
        matched = {name: [match_host(x, frames, samples, self.frame_shift) for x in found[name]] for name in names}
        return {name: x[0] if name in SINGLE else x for name, x in matched.items()}


class StudentUpstream(Upstream):
    """``-u distilled_student``: ``hidden_states``, ``predictions`` (one per teacher layer), ``last_hidden_state``."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.frame_shift = self.student.config.frame_shift

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        output = self.student(waveforms, lengths, predict=self.selected in (None, "predictions"))
        named = {"hidden_states": output.hidden_states}
        if output.predictions is not None:
            named["predictions"] = list(output.predictions.unbind(1))
        return named, output.lengths


class TeacherUpstream(Upstream):
    """``-u teacher -k NAME_OR_FOLDER``: ``hidden_states``, ``last_hidden_state`` of any teacher, trainable with -f."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.frame_shift = self.encoder.frame_shift

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        encoded = self.encoder(waveforms, lengths)
        return {"hidden_states": list(encoded.hidden_states)}, encoded.lengths


def student_upstream(ckpt: str | None = None, **_: Any) -> StudentUpstream:
    """s3prl's factory of ``distilled_student``; ``ckpt`` (-k): see `load_student`; by default the shipped one."""
    return StudentUpstream(load_student(ckpt or shipped_student()))


def teacher_upstream(ckpt: str | None = None, **_: Any) -> TeacherUpstream:
    """s3prl's factory of ``teacher``; ``ckpt`` (-k): see `open_teacher`; by default the shipped one."""
    return TeacherUpstream(open_teacher(ckpt or "shipped"))
