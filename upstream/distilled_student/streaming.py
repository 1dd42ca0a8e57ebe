"""Runs causal students on a stream in PyTorch: results on chunks are those on the whole utterance."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.errors import UserError
from distilled_student.common.sample_range import wrong_range, wrong_type
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.onnx import HOP_SECONDS, TAIL_SECONDS, Detector, DetectorSettings
from distilled_student.student.attention import causal_mask
from distilled_student.student.config import StudentConfig
from distilled_student.student.frontend import LogMelStem
from distilled_student.student.log_mel import HOP
from distilled_student.student.network import StudentOutput, repeat_frames
from distilled_student.student.positions import ConvPositions

if TYPE_CHECKING:
    from distilled_student.multitask.device_model import JointModel
    from distilled_student.multitask.short_utterances import Filling

WINDOW_SECONDS = 1.0  # the length of the keyword clips that models are trained on


def check_causal(config: StudentConfig) -> None:
    """Raise UserError if a student needs later samples; the message names the part that does."""
    if config.causal:
        return
    if config.frontend == "cnn" and config.conv_norm == "group":
        reason = "its group norm computes mean and variance over the whole utterance"
    elif config.normalize:
        reason = "its waveforms are normalised over the whole utterance"
    else:
        reason = "its frames depend on later frames"
    raise UserError(f"causal: this student cannot stream: {reason}; use a causal student, such as edge or tiny")


def join(past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Put the past in front of ``x``, along dimension 1 (time).

    Returns:
        Both joined, and the past of the next chunk, which is as long as ``past``.
    """
    joined = torch.cat([past, x], dim=1)
    return joined, joined[:, x.shape[1] :]


class StepOutput(NamedTuple):
    """The outputs of a `Step` for one chunk.

    Attributes:
        output: Hidden states and predictions of the chunk's frames, see `StudentOutput`.
        tasks: The output of each task ``(1, outputs)`` by name, of the window that ends with the chunk; see
            `JointModel.heads`.
        state: The state that the next chunk needs.
    """

    output: StudentOutput
    tasks: dict[str, Tensor]
    state: dict[str, Tensor]


class Step(nn.Module):
    """Processes one chunk of a stream. All state is in arguments and results, so that a step can become a graph.

    Args:
        model: Student and heads.
        window: Length in seconds of the window that heads are applied to; None: everything since the beginning.

    Attributes:
        chunk: Samples; the length of every chunk is a multiple of it.
        window: In frames, or None.

    Raises:
        UserError: the student is not causal, or ``window`` is shorter than the shortest chunk.
    """

    def __init__(self, model: JointModel, window: float | None = WINDOW_SECONDS) -> None:
        super().__init__()
        check_causal(model.student.config)
        self.model, self.config = model, model.student.config
        self.chunk = self.config.frame_shift * self.config.encoder_stride
        self.window = None if window is None else round(window * SAMPLE_RATE / self.config.frame_shift)
        if self.window is not None and self.window < self.config.encoder_stride:
            raise UserError(f"window: must be at least {self.chunk / SAMPLE_RATE} s, found {window}")

    @functools.cached_property  # read for each chunk
    def fillings(self) -> dict[str, Filling]:
        """What happens for a task while fewer samples have arrived, by the task's output: `BaseTask.filling`.

        A multiple of ``chunk`` samples, and not more than the window holds.
        """
        window = math.inf if self.window is None else self.window // self.config.encoder_stride
        needed = {name: ceil_div(filling.samples, self.chunk) for name, filling in self.model.fillings.items()}
        lengths = {name: int(min(chunks, window)) * self.chunk for name, chunks in needed.items()}
        return {name: filling._replace(samples=lengths[name]) for name, filling in self.model.fillings.items()}

    @property
    def padded_to(self) -> dict[str, int]:
        """The samples of those `fillings` that are silence."""
        return {name: filling.samples for name, filling in self.fillings.items() if not filling.repeats}

    @property
    def repeated_to(self) -> dict[str, int]:
        """The samples of those `fillings` that repeat the utterance."""
        return {name: filling.samples for name, filling in self.fillings.items() if filling.repeats}

    def start(self) -> dict[str, Tensor]:
        """The state before the first sample: all zeros, of fixed shapes; only without a window it grows."""
        config, stem = self.config, self.model.student.frontend
        state = {"frames": torch.zeros(1, dtype=torch.int64), "waveform": torch.zeros(1, stem.mel.samples_before)}
        for i, (layer, width) in enumerate(zip(stem.layers, [config.mel_bins, *config.conv_dim], strict=False)):
            state[f"stem_{i}"] = torch.zeros(1, stem.frames_before(layer), width)
        if config.positions == "conv":
            state["positions"] = torch.zeros(1, config.position_kernel - 1, config.hidden_size)
        for i in range(self.model.student.attending_layers):
            state[f"layer_{i}"] = torch.zeros(1, config.attention_context - 1, 2 * config.hidden_size)
        with torch.no_grad():
            features = self.model.features(self.encode(torch.zeros(1, self.chunk), dict(state)))
        state["window"] = features.new_zeros(1, self.window or 0, features.shape[2])
        return state

    def stem(self, samples: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The front end: ``(1, samples)`` -> ``(1, frames, features)``; updates ``state`` in place."""
        stem: LogMelStem = self.model.student.frontend
        frames = samples.shape[1] // HOP
        joined, state["waveform"] = join(state["waveform"], samples)
        x = (stem.mel.log_mel(joined, frames) + 4.0) / 4.0
        for i, layer in enumerate(stem.layers):
            joined, state[f"stem_{i}"] = join(state[f"stem_{i}"], x)
            frames = frames // layer.stride
            x = layer(joined)[:, :frames]
        return x

    def encode(self, samples: Tensor, state: dict[str, Tensor]) -> StudentOutput:
        """The student on ``(1, samples)``, a multiple of ``chunk``; updates ``state`` in place."""
        student, config = self.model.student, self.config
        x = student.project(self.stem(self.model.gain * samples, state))
        frames, stride = x.shape[1], config.encoder_stride
        x = x.unflatten(1, (-1, stride)).mean(dim=2) if stride > 1 else x
        if isinstance(student.positions, ConvPositions):
            joined, state["positions"] = join(state["positions"], x)
            x = x + student.positions.embed(joined)
        past = config.attention_context - 1
        # frames in front of the first sample are zeros in the state, and attention must not see them
        exists = torch.arange(past + x.shape[1]) >= past - state["frames"] // stride
        mask = causal_mask(x.shape[1], past, past + 1, x.device) & exists
        pasts = [state[f"layer_{i}"] for i in range(student.attending_layers)]
        hidden_states, key_values = student.run_layers(x, mask, pasts)
        for i, key_value in enumerate(key_values):
            state[f"layer_{i}"] = key_value[:, x.shape[1] :]
        state["frames"] = state["frames"] + frames
        predictions = None if student.predictions is None else student.predictions(hidden_states[config.layers])
        hidden_states = [repeat_frames(h, stride, frames) for h in hidden_states]
        predictions = None if predictions is None else repeat_frames(predictions, stride, frames)
        return StudentOutput(hidden_states, hidden_states[config.layers], predictions, torch.full((1,), frames))

    def forward(self, samples: Tensor, state: dict[str, Tensor]) -> StepOutput:
        """``(1, samples)`` float32 at 16 kHz in [-1, 1], a multiple of ``chunk``, and the state before the chunk."""
        state = dict(state)
        output = self.encode(samples, state)
        all_features, newest = join(state["window"], self.model.features(output))
        state["window"] = window = all_features if self.window is None else newest
        # Until the window is full, its valid frames are at its end; heads need them at its beginning.
        size = window.shape[1]
        valid = state["frames"].clamp(max=size)
        index = (torch.arange(size) + size - valid).clamp(max=size - 1)
        return StepOutput(output, self.model.heads(window[:, index], valid), state)


class StreamOutput(NamedTuple):
    """The outputs of a `Stream` for the frames that some samples complete; D is the student's width.

    Attributes:
        hidden_states: Tensors ``(frames, D)`` of the new frames, as many as in `StudentOutput`.
        tasks: The output of each task ``(outputs,)`` by name, of the window that ends with the last new frame; see
            `JointModel.heads`.
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
    """A causal model on samples as they arrive; the results are those on the whole utterance.

        stream = Stream(open_joint("exp/joint"))
        for samples in microphone:
            if (output := stream.feed(samples)) is not None:
                print(stream.labels[output.keyword_scores.argmax()])

    A frame is computed as soon as its last sample arrives. Samples that do not complete a frame (two frames with
    ``encoder_stride: 2``) wait for the next call. The model must be on the CPU; it is set to eval mode.

    Args:
        model: See `distilled_student.multitask.device_model.open_joint`.
        window: Length in seconds of the window that heads are applied to; None: everything since `reset`, which is for
            short streams only.

    Raises:
        UserError: the student is not causal, or ``window`` is too short.
    """

    def __init__(self, model: JointModel, window: float | None = WINDOW_SECONDS) -> None:
        self.step, self.labels = Step(model, window).eval(), model.labels
        self.reset()

    def reset(self) -> None:
        """Discard the state: the next sample is the first of a new stream."""
        self.state, self.waiting = self.step.start(), torch.zeros(0)
        self.beginning = torch.zeros(0)  # the first samples, as many as a filling needs

    @torch.no_grad()
    def feed(self, samples: Tensor) -> StreamOutput | None:
        """Process any number of samples ``(samples,)``, float32 at 16 kHz in [-1, 1]; None if no frame is complete.

        While there are fewer samples than in training, a task gets those so far followed by silence or repeated, as in
        an evaluation (`Step.fillings`). What is added does not become part of the stream.

        Raises:
            UserError: another shape, integers, or a peak far above 1.
        """
        samples = torch.as_tensor(samples)
        if samples.dim() != 1:
            raise UserError(f"samples: expected one channel (samples,), found shape {tuple(samples.shape)}")
        if fault := wrong_type(samples) or wrong_range(samples):
            raise UserError(f"samples: {fault}")
        samples = torch.cat([self.waiting, samples.float()])
        ready = len(samples) // self.step.chunk * self.step.chunk
        self.waiting = samples[ready:]
        if ready == 0:
            return None
        output, tasks, self.state = self.step(samples[None, :ready], self.state)
        processed, fillings = int(self.state["frames"]) * self.step.config.frame_shift, self.step.fillings
        if len(self.beginning) < max((filling.samples for filling in fillings.values()), default=0):
            self.beginning = torch.cat([self.beginning, samples[:ready]])
        for name, filling in fillings.items():
            if processed < filling.samples:
                added = filling.fill(self.beginning)[processed:]
                tasks[name] = self.step(added[None], self.state).tasks[name]
        return StreamOutput(
            [hidden_state[0] for hidden_state in output.hidden_states],
            {name: task_output[0] for name, task_output in tasks.items()},
        )


class TimedKeyword(NamedTuple):
    """A keyword, its smoothed probability ``score``, and the end in ``seconds`` of the hop that completed it."""

    seconds: float
    label: str
    score: float


Spotted = TimedKeyword  # its name in 0.1


def listen(
    stream: Stream,
    waveform: Tensor,
    chunk_ms: int = 100,
    threshold: float | None = None,
    settings: DetectorSettings | None = None,
) -> Iterator[TimedKeyword]:
    """Feed ``waveform (samples,)`` in chunks of ``chunk_ms`` milliseconds and report each keyword once.

    The hits are those of `distilled_student.onnx`, for any length of the chunks: the stream is scored after each hop of
    `HOP_SECONDS`, and a `Detector` decides. `TAIL_SECONDS` of silence follow the waveform.

    Args:
        threshold: None: that of `JointModel.detector_settings`, as in an exported stream.
        settings: Of the detector, with a threshold of their own; None: with ``threshold`` the defaults, else those of
            `JointModel.detector_settings`.

    Raises:
        UserError: the model has no keyword task.
    """
    if not stream.labels:
        raise UserError("keywords: the model has no keyword task; read its hidden states with Stream.feed")
    if settings is None:
        model = stream.step.model
        settings = DetectorSettings(threshold)
        if threshold is None:
            settings = model.detector_settings(model.keyword_threshold())
    hop = ceil_div(round(HOP_SECONDS * SAMPLE_RATE), stream.step.chunk) * stream.step.chunk
    detector, of_hop = Detector(stream.labels, settings, hop / SAMPLE_RATE), torch.zeros(0)
    tail = waveform.new_zeros(round(TAIL_SECONDS * SAMPLE_RATE))
    for samples in (*waveform.split(SAMPLE_RATE * chunk_ms // 1000), tail):
        of_hop = torch.cat([of_hop, samples])
        while len(of_hop) >= hop:
            complete, of_hop = of_hop.split([hop, len(of_hop) - hop])
            scores = stream.feed(complete).keyword_scores
            if (hit := detector.step(scores.numpy(), complete.numpy())) is not None:
                yield TimedKeyword(hit.seconds, hit.label, hit.score)
