"""The two s3prl upstreams of this package: ``distilled_student`` and ``teacher``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distilled_student.checkpoints.folder import load_student
from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.audio import MAX_ENCODED_SECONDS, SAMPLE_RATE
from distilled_student.common.sample_range import wrong_range, wrong_type
from distilled_student.common.shipped_models import DEFAULT
from distilled_student.student.lengths import not_a_tensor
from distilled_student.student.network import Student
from distilled_student.teachers.open import open_teacher
from distilled_student.teachers.s3prl_encoder import FRONT_END_GRADIENT

PREDICTED = ("predictions", "all")  # features that need the prediction layers
TENSORS = ("last_hidden_state", "concatenated", "all")  # features that are one tensor; all others are a list of tensors


def match_host(x: Tensor, lengths: Tensor, samples: Sequence[int], shift: int) -> Tensor:
    """Give each utterance the ``ceil(samples / shift)`` frames that s3prl expects, by repeating its last valid frame.

    s3prl expects more frames than a front end makes (its runner rounds, its ``S3PRLUpstream`` rounds up). Without this,
    an utterance alone would have too few frames, and in a batch the missing ones would be padding. ``S3PRLUpstream``
    repeats the last frame too.

    Args:
        x: ``(batch, frames, features)``. lengths: Valid frames, on the CPU. samples: Samples of each utterance.
        shift: Samples per frame.

    Returns:
        ``(batch, max ceil(samples / shift), features)``; frames after those of an utterance are not changed.
    """
    expected = torch.tensor([ceil_div(count, shift) for count in samples])
    x = F.pad(x, (0, 0, 0, int(expected.max()) - x.shape[1]))
    frame = torch.arange(x.shape[1])
    is_missing = (frame >= lengths[:, None]) & (frame < expected[:, None])
    if not is_missing.any():
        return x
    rows, frames = (index.to(x.device, non_blocking=True) for index in is_missing.nonzero(as_tuple=True))
    last = (lengths.clamp(min=1) - 1).to(x.device, non_blocking=True)[rows]
    return x.index_put((rows, frames), x[rows, last])


def _pieces(wav: Tensor, max_frames: int, shift: int) -> Sequence[Tensor]:
    """``(samples,)`` in as few pieces of at most ``max_frames`` as possible; all but the last have the same length."""
    frames = ceil_div(len(wav), shift)
    pieces = ceil_div(frames, max_frames)
    return wav.split(ceil_div(frames, pieces) * shift)


def _join_in_time(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Features of the pieces of one utterance, ``(1, frames, features)`` each, as those of the whole."""
    return _join(pieces, lambda tensors: torch.cat(tensors, dim=1))


def _join_batch(utterances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Features of single utterances, ``(1, frames, features)`` each, as a batch, zero-padded to the longest."""
    return _join(utterances, lambda tensors: pad_sequence([x[0] for x in tensors], batch_first=True))


def _join(parts: Sequence[dict[str, Any]], join: Callable[[Sequence[Tensor]], Tensor]) -> dict[str, Any]:
    joined = {}
    for name in parts[0]:
        features = [part[name] for part in parts]
        joined[name] = join(features) if name in TENSORS else [join(layer) for layer in zip(*features, strict=True)]
    return joined


def _check_wavs(wavs: Sequence[Tensor]) -> None:
    """Raise ValueError for a batch that is not a list of one or more waveforms ``(samples,)``."""
    if len(wavs) == 0:
        raise ValueError("wavs: an empty batch: give one utterance or more")
    for number, wav in enumerate(wavs):
        if not isinstance(wav, Tensor):
            raise ValueError(f"wavs[{number}]: {not_a_tensor(wav)}")
        if wav.dim() != 1 or len(wav) == 0:
            raise ValueError(f"wavs[{number}]: expected (samples,), found {tuple(wav.shape)}")


class Upstream(nn.Module):
    """What both upstreams share: a list of waveforms in, padded features of the lengths that s3prl expects out.

    In addition to the named lists: ``last_hidden_state``, and ``concatenated``, all hidden states side by side. From
    the latter each task's head takes the layers it needs; s3prl's weighted sum is one for all tasks. ``all``, of a
    student whose predictions are as wide as its hidden states, has the predictions behind them.
    """

    frame_shift: int
    revision: str | None = None  # the commit on the hub that the weights were read from
    selected: str | None = None  # the only features that are computed; None: all

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples at 16 kHz per frame; the same for every ``key``."""
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

        Raises:
            ValueError: no waveforms, something else than 1-D tensors, a waveform without samples, integers, or a peak
                far above 1.
        """
        _check_wavs(wavs)
        max_frames = MAX_ENCODED_SECONDS * SAMPLE_RATE // self.frame_shift  # whole frames: those of the pieces add up
        if self.training or max(map(len, wavs)) <= max_frames * self.frame_shift:
            return self._features(wavs)
        utterances = []
        for wav in wavs:
            pieces = _pieces(wav, max_frames, self.frame_shift)
            utterances.append(_join_in_time([self._features([piece]) for piece in pieces]))
        return _join_batch(utterances)

    def _features(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Features of a batch that is encoded at once."""
        samples = [len(wav) for wav in wavs]
        lengths = torch.tensor(samples)  # on the CPU, see Student.forward
        found, frames = self.encode(pad_sequence(list(wavs), batch_first=True), lengths)
        found.setdefault("last_hidden_state", found["hidden_states"][-1:])
        if self.selected in (None, "concatenated"):
            found["concatenated"] = [torch.cat(found["hidden_states"], dim=2)]
        layers = [*found["hidden_states"], *found.get("predictions", ())]
        if self.selected in (None, "all") and "predictions" in found and len({x.shape[2] for x in layers}) == 1:
            found["all"] = [torch.cat(layers, dim=2)]
        names = found if self.selected is None else [self.selected]
        matched = {name: [match_host(x, frames, samples, self.frame_shift) for x in found[name]] for name in names}
        return {name: x[0] if name in TENSORS else x for name, x in matched.items()}


class StudentUpstream(Upstream):
    """``-u distilled_student``: ``hidden_states``, ``predictions`` (one per teacher layer), ``last_hidden_state``."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.frame_shift, self.revision = student.config.frame_shift, student.revision

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        output = self.student(waveforms, lengths, predict=self.selected in (None, *PREDICTED))
        named = {"hidden_states": output.hidden_states, "last_hidden_state": [output.last_hidden_state]}
        if output.predictions is not None:
            named["predictions"] = list(output.predictions.unbind(1))
        return named, output.lengths


class TeacherUpstream(Upstream):
    """``-u teacher -k NAME_OR_FOLDER``: ``hidden_states``, ``last_hidden_state`` of any teacher, trainable with -f."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.checks_range = encoder, True
        self.frame_shift, self.revision = encoder.frame_shift, getattr(encoder, "revision", None)

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        reads_peak = self.checks_range and waveforms.device.type == "cpu"  # on a GPU this would wait
        if fault := wrong_type(waveforms) or (wrong_range(waveforms) if reads_peak else None):
            raise ValueError(f"waveforms: {fault}")
        encoded = self.encoder(waveforms, lengths)
        return {"hidden_states": list(encoded.hidden_states)}, encoded.lengths


def student_upstream(ckpt: str | None = None, **_: Any) -> StudentUpstream:
    """s3prl's factory of ``distilled_student``; ``ckpt`` (-k): see `load_student`; by default ``edge``."""
    return StudentUpstream(load_student(ckpt or DEFAULT))


def teacher_upstream(ckpt: str | None = None, **_: Any) -> TeacherUpstream:
    """s3prl's factory of ``teacher``; ``ckpt`` (-k): see `open_teacher`; by default the shipped one."""
    return TeacherUpstream(open_teacher(ckpt or "shipped"))


def front_end_warning(upstream: nn.Module, name: str, ckpt: str | None) -> str | None:
    """The warning that ``-f`` trains the front end of an s3prl upstream less than the rest, or not at all; or None.

    s3prl sets the factor of its gradient to 0 in HuBERT, wav2vec 2.0, WavLM and others; the paper trains everything.
    ``name`` and ``ckpt``: ``-u`` and ``-k``.
    """
    factors = [getattr(module, FRONT_END_GRADIENT, 1.0) for module in upstream.modules()]
    if not factors or min(factors) >= 1:
        return None
    effect = "gets no gradient" if min(factors) == 0 else f"gets {min(factors):g} of its gradient"
    return f"-u {name} -f: the front end {effect} in s3prl; to train all of it: -u teacher -k {ckpt or name}"
