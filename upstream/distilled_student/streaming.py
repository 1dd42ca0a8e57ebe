"""Causal students on a stream: chunks in, the frames and keyword scores of the whole utterance out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.student.config import StudentConfig
from distilled_student.student.frontend import LogMelStem
from distilled_student.student.log_mel import HOP
from distilled_student.student.network import StudentOutput, causal_mask, repeat_frames
from distilled_student.student.positions import ConvPositions

if TYPE_CHECKING:
    from distilled_student.multitask.device_model import JointModel

WINDOW_SECONDS = 1.0  # what training clips of keywords have


def check_causal(config: StudentConfig) -> None:
    """Raise UserError for a student that needs what a stream does not have yet."""
    if config.causal:
        return
    if config.frontend == "cnn" and config.conv_norm == "group":
        why = "its group norm takes mean and variance over the whole utterance"
    elif config.normalize:
        why = "its waveforms are normalised over the whole utterance"
    else:
        why = "its frames see later ones"
    raise UserError(f"causal: a stream needs a causal student, such as edge or tiny; of this one, {why}")


def join(past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` with its past in front, and the next chunk's past, which is as long; time is dimension 1."""
    wide = torch.cat([past, x], dim=1)
    return wide, wide[:, x.shape[1] :]


class StepOutput(NamedTuple):
    """What one chunk gives; T is its frames, D the student's width.

    Attributes:
        output: Hidden states and predictions of the chunk's frames, see `StudentOutput`.
        tasks: The output of each task by name, of the window that ends with the chunk: see `JointModel.heads`.
        state: For the next chunk.
    """

    output: StudentOutput
    tasks: dict[str, Tensor]
    state: dict[str, Tensor]


class Step(nn.Module):
    """One chunk of a stream. It keeps nothing: what it must remember comes and goes as tensors, so that it is a graph.

    Args:
        model: Student and heads.
        window: Seconds that keyword scores are of; None: all since the beginning.

    Raises:
        UserError: the student is not causal, or ``window`` is shorter than a chunk.
    """

    def __init__(self, model: JointModel, window: float | None = WINDOW_SECONDS) -> None:
        super().__init__()
        check_causal(model.student.config)
        self.model, self.config = model, model.student.config
        self.chunk = self.config.frame_shift * self.config.encoder_stride  # samples; a chunk is a multiple of these
        self.window = None if window is None else round(window * SAMPLE_RATE / self.config.frame_shift)
        if self.window is not None and self.window < self.config.encoder_stride:
            raise UserError(f"window: needs at least {self.chunk / SAMPLE_RATE} s, found {window}")

    def start(self) -> dict[str, Tensor]:
        """What there is before the first sample. All of it has a fixed size, but for a window of everything."""
        config, stem = self.config, self.model.student.frontend
        state = {"frames": torch.zeros(1, dtype=torch.int64), "waveform": torch.zeros(1, stem.mel.samples_before)}
        for i, (layer, width) in enumerate(zip(stem.layers, [config.mel_bins, *config.conv_dim], strict=False)):
            state[f"stem_{i}"] = torch.zeros(1, stem.frames_before(layer), width)
        if config.positions == "conv":
            state["positions"] = torch.zeros(1, config.position_kernel - 1, config.hidden_size)
        for i in range(config.layers):
            state[f"layer_{i}"] = torch.zeros(1, config.attention_context - 1, 2 * config.hidden_size)
        with torch.no_grad():
            features = self.model.features(self.encode(torch.zeros(1, self.chunk), dict(state)))
        state["window"] = features.new_zeros(1, self.window or 0, features.shape[2])
        return state

    def stem(self, samples: Tensor, state: dict[str, Tensor]) -> Tensor:
        """``(1, samples)`` -> ``(1, frames, features)``; updates ``state``, as `encode` does."""
        stem: LogMelStem = self.model.student.frontend
        frames = samples.shape[1] // HOP
        wide, state["waveform"] = join(state["waveform"], samples)
        x = (stem.mel.log_mel(wide, frames) + 4.0) / 4.0
        for i, layer in enumerate(stem.layers):
            wide, state[f"stem_{i}"] = join(state[f"stem_{i}"], x)
            frames = frames // layer.stride
            x = layer(wide)[:, :frames]
        return x

    def encode(self, samples: Tensor, state: dict[str, Tensor]) -> StudentOutput:
        """The student on ``(1, samples)``, whole multiples of ``chunk``."""
        student, config = self.model.student, self.config
        x = student.project(self.stem(self.model.gain * samples, state))
        frames, stride = x.shape[1], config.encoder_stride
        x = x.unflatten(1, (-1, stride)).mean(dim=2) if stride > 1 else x
        if isinstance(student.positions, ConvPositions):
            wide, state["positions"] = join(state["positions"], x)
            x = x + student.positions.embed(wide)
        past = config.attention_context - 1
        begun = torch.arange(past + x.shape[1]) >= past - state["frames"] // stride
        mask = causal_mask(x.shape[1], past, past + 1, x.device) & begun
        hidden_states, key_values = student.run_layers(x, mask, [state[f"layer_{i}"] for i in range(config.layers)])
        for i, key_value in enumerate(key_values):
            state[f"layer_{i}"] = key_value[:, x.shape[1] :]
        state["frames"] = state["frames"] + frames
        predictions = None if student.predictions is None else student.predictions(hidden_states[-1])
        hidden_states = [repeat_frames(h, stride, frames) for h in hidden_states]
        predictions = None if predictions is None else repeat_frames(predictions, stride, frames)
        return StudentOutput(hidden_states, hidden_states[-1], predictions, torch.full((1,), frames))

    def forward(self, samples: Tensor, state: dict[str, Tensor]) -> StepOutput:
        """``(1, samples)`` float32 at 16 kHz in [-1, 1], a multiple of ``chunk``, and the state before them."""
        state = dict(state)
        output = self.encode(samples, state)
        window, newest = join(state["window"], self.model.features(output))
        state["window"] = window = window if self.window is None else newest
        # heads want the valid frames in front; until the window is full they are at its end
        size = window.shape[1]
        valid = state["frames"].clamp(max=size)
        index = (torch.arange(size) + size - valid).clamp(max=size - 1)
        return StepOutput(output, self.model.heads(window[:, index], valid), state)


class StreamOutput(NamedTuple):
    """What is new after some samples; D is the student's width.

    Attributes:
        hidden_states: ``layers + 1`` tensors ``(frames, D)`` of the new frames, as of `StudentOutput`.
        tasks: The output of each task by name, of the window that ends with them: see `JointModel.heads`.
    """

    hidden_states: list[Tensor]
    tasks: dict[str, Tensor]

    @property
    def keyword_scores(self) -> Tensor | None:
        """``(classes,)`` probabilities, or None without a keyword task."""
        return self.tasks.get("keyword_scores")

    @property
    def speaker_embedding(self) -> Tensor | None:
        """``(embedding,)``, or None without speaker verification."""
        return self.tasks.get("speaker_embedding")


class Stream:
    """A causal model on samples as they come, with the results that it has on the whole.

        stream = Stream(open_joint("exp/joint"))
        for samples in microphone:
            if (new := stream.feed(samples)) is not None:
                print(stream.labels[new.keyword_scores.argmax()])

    Frames are those of the samples so far: each is there with its last sample. Samples that do not fill a frame (two
    with ``encoder_stride`` 2) wait for the next ones. Model on the CPU, in eval mode.

    Args:
        model: See `distilled_student.multitask.device_model.open_joint`.
        window: Seconds that scores are of; None: everything since `reset`, which is for short streams alone.

    Raises:
        UserError: the student is not causal.
    """

    def __init__(self, model: JointModel, window: float | None = WINDOW_SECONDS) -> None:
        self.step, self.labels = Step(model, window).eval(), model.labels
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first."""
        self.state, self.waiting = self.step.start(), torch.zeros(0)

    @torch.no_grad()
    def feed(self, samples: Tensor) -> StreamOutput | None:
        """Take ``(samples,)`` float32 at 16 kHz in [-1, 1], as many as there are; None where they complete no frame."""
        samples = torch.cat([self.waiting, samples])
        ready = len(samples) // self.step.chunk * self.step.chunk
        self.waiting = samples[ready:]
        if ready == 0:
            return None
        output, tasks, self.state = self.step(samples[None, :ready], self.state)
        tasks = {name: x[0] for name, x in tasks.items()}
        return StreamOutput([h[0] for h in output.hidden_states], tasks)


class Spotted(NamedTuple):
    """A keyword, its probability, and the seconds from the beginning at which it was known."""

    seconds: float
    label: str
    score: float


def listen(stream: Stream, waveform: Tensor, chunk_ms: int = 100, threshold: float = 0.5) -> Iterator[Spotted]:
    """Feed ``waveform (samples,)`` in chunks; each keyword once, when it reaches the threshold.

    Raises:
        UserError: the stream's model has no keyword task.
    """
    from distilled_student.corpora.keywords import SILENCE, UNKNOWN

    if not stream.labels:
        raise UserError("keywords: the model has no keyword task; a stream of its hidden states is Stream.feed")
    before, chunk = None, SAMPLE_RATE * chunk_ms // 1000
    for number, samples in enumerate(waveform.split(chunk), start=1):
        if (new := stream.feed(samples)) is None:
            continue
        score, best = (float(value) for value in new.keyword_scores.max(dim=0))
        label = stream.labels[int(best)]
        heard = label if score >= threshold and label not in (SILENCE, UNKNOWN) else None
        if heard is not None and heard != before:
            yield Spotted(min(number * chunk, len(waveform)) / SAMPLE_RATE, heard, score)
        before = heard
