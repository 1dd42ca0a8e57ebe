"""The network of `WordMaps` and its training: its vectors of windows of speech become those of a teacher.

No labels are needed. A window of 0.3 to 1 second anywhere in speech has a vector of the teacher and one of the student.
The loss compares each window with all windows of the batch: the student's cosines to the teacher's vectors have to be
distributed as the teacher's own cosines are. Half of the audio has noise for the student and none for the teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distilled_student.common.effects import Effects
from distilled_student.common.progress import Progress
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.onnx import Model
from distilled_student.onnx.words import CONCATENATED, TABLES, WordMaps
from distilled_student.teachers.encoders import Encoder
from distilled_student.word_maps.teacher_words import SEGMENTS, SIZE, TeacherWords, segment_means

log = logging.getLogger(__name__)
WIDTH, BLOCKS, TAPS = 128, 4, 7
DELAY = 8  # frames: windows of the student are so much later than those of the teacher
STRIP = 8 * SAMPLE_RATE  # samples
PART = 4.0  # seconds of a strip that a step uses
BATCH, WINDOWS = 32, 16  # strips of a step; windows of a strip
SECONDS = (0.28, 0.96)  # length of a window
TEMPERATURE = 0.07
LEARNING_RATE, WARMUP = 1.2e-2, 0.1
AVERAGE = 0.998  # decay of the running mean of the weights
LIMIT = 15.0  # of the teacher's projected frames; a few are much larger
HELD_OUT = 0.04  # share of the strips
LEAST_STRIPS = 10


class WordNetwork(nn.Module):
    """The network and the map of `WordMaps`, for training."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.front = nn.Linear(features, WIDTH)
        self.depth = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, TAPS, groups=WIDTH) for _ in range(BLOCKS))
        self.mix = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.mapping = nn.Linear(SEGMENTS * WIDTH, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states, standardised, ``(batch, frames, features)`` -> ``(batch, frames, WIDTH)``."""
        x = F.pad(self.front(x), (0, 0, BLOCKS * (TAPS - 1), 0))
        for depth, mix in zip(self.depth, self.mix, strict=True):
            x = x[:, TAPS - 1 :] + mix(F.relu(depth(x.transpose(1, 2))).transpose(1, 2))
        return x

    def vectors(self, x: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """The vectors ``(batch, windows, SIZE)``, of length 1, of windows of ``forward``'s result."""
        return F.normalize(self.mapping(segment_means(x, starts, ends)), dim=-1)

    @torch.no_grad()
    def as_maps(self, mean: Tensor, scale: Tensor, fingerprint: str) -> WordMaps:
        """The weights as `WordMaps` for hidden states that are not standardised; with no other words."""
        front = self.front.weight / scale
        arrays = {
            "front": front.T,
            "front_bias": self.front.bias - front @ mean,
            "depth": torch.stack([layer.weight[:, 0].T for layer in self.depth]),
            "depth_bias": torch.stack([layer.bias for layer in self.depth]),
            "mix": torch.stack([layer.weight.T for layer in self.mix]),
            "mix_bias": torch.stack([layer.bias for layer in self.mix]),
            "mapping": self.mapping.weight.T,
            "mapping_bias": self.mapping.bias,
        }
        none = {name: np.zeros(0, np.float32) for name in (*TABLES, "speech")}
        weights = {name: np.ascontiguousarray(array.numpy()) for name, array in arrays.items()}
        others = np.zeros((0, SIZE), np.float32)
        return WordMaps(fingerprint, SEGMENTS, DELAY, 0.0, **weights, others=others, **none, slope=1.0)


@dataclass(frozen=True)
class Speech:
    """Strips of speech as student and teacher see them.

    Attributes:
        hidden: The student's hidden states ``(strips, frames, features)``, in half precision.
        targets: The teacher's projected frames ``(strips, frames, projected)``, in half precision.
    """

    hidden: NDArray[np.float16]
    targets: NDArray[np.float16]

    def part(self, strips: NDArray, start: float, seconds: float) -> tuple[Tensor, Tensor]:
        """The frames of some strips from ``start`` on; the student's and the teacher's."""
        found = []
        for array in (self.hidden, self.targets):
            first, frames = (round(time * array.shape[1] * SAMPLE_RATE / STRIP) for time in (start, seconds))
            found.append(torch.from_numpy(array[strips, first : first + frames].astype(np.float32)))
        return found[0], found[1].clamp(-LIMIT, LIMIT)


@torch.no_grad()
def encode(
    model: Model,
    encoder: Encoder,
    layer: int,
    words: TeacherWords,
    strips: Iterable[NDArray[np.float32]],
    effects: Effects,
    seed: int,
) -> Speech:
    """Encode strips: the student a stream with ``effects``, the teacher clean audio."""
    rng, stream = np.random.default_rng(seed), model.stream()
    hidden, targets = [], []
    with Progress(None, "reading speech") as progress:
        for strip in strips:
            stream.reset()
            changed = effects(torch.from_numpy(strip), rng).clamp(-1, 1).numpy()
            hidden.append(stream.advance(changed)[CONCATENATED].astype(np.float16))
            states = encoder(torch.from_numpy(strip)[None]).hidden_states[layer][0].float()
            projected = words.project(states).clamp(-1000, 1000)  # half precision ends at 65,504
            targets.append(projected.numpy().astype(np.float16))
            progress.update()
    return Speech(np.array(hidden), np.array(targets))


def loss(
    network: WordNetwork, hidden: Tensor, targets: Tensor, words: TeacherWords, rng: np.random.Generator
) -> Tensor:
    """The loss of random windows of standardised hidden states and the teacher's projected frames."""
    lengths = rng.uniform(*SECONDS, (len(hidden), WINDOWS))
    delayed = DELAY * PART / hidden.shape[1]
    starts = rng.uniform(0, 1, lengths.shape) * (PART - delayed - lengths)
    vectors = []
    for x, of, later in ((network(hidden), network, delayed), (targets, words, 0.0)):
        bounds = (starts + later, starts + later + lengths)
        first, last = (torch.from_numpy(time).float() * x.shape[1] / PART for time in bounds)
        vectors.append(of.vectors(x, first, last).flatten(0, 1))
    found, wanted = vectors
    shares = (wanted @ wanted.T / TEMPERATURE).softmax(dim=1)
    logs = (found @ wanted.T / TEMPERATURE).log_softmax(dim=1)
    return F.kl_div(logs, shares, reduction="batchmean")


def train(speech: Speech, words: TeacherWords, fingerprint: str, steps: int, seed: int = 0) -> WordMaps:
    """Train a network; the loss on held-out strips is logged.

    Args:
        speech: At least `LEAST_STRIPS` strips.
        fingerprint: Of the model.
    """
    torch.manual_seed(seed)
    rng, count = np.random.default_rng(seed), len(speech.hidden)
    first = count - max(3, round(HELD_OUT * count))
    trained, held_out = np.arange(first), np.arange(first, count)
    some = torch.from_numpy(speech.hidden[trained[:: max(1, count // 64)]].astype(np.float32)).flatten(0, 1)
    mean, scale = some.mean(dim=0), some.std(dim=0) + 1e-4
    network = WordNetwork(speech.hidden.shape[2])
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=WARMUP)

    def loss_of(one: WordNetwork, strips: NDArray, rng: np.random.Generator) -> Tensor:
        hidden, targets = speech.part(strips, rng.uniform(0, STRIP / SAMPLE_RATE - PART), PART)
        return loss(one, (hidden - mean) / scale, targets, words, rng)

    with Progress(steps, "training", lines=False) as progress:
        for step in range(1, steps + 1):
            value = loss_of(network, rng.choice(trained, min(BATCH, len(trained)), replace=False), rng)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            progress.update()
            if step % 500 == 0 or step == steps:
                with torch.no_grad():
                    rngs = [np.random.default_rng(number) for number in range(4)]
                    found = np.mean([loss_of(average.module, held_out, rng).item() for rng in rngs])
                log.info("step %d: loss %.3f, held out %.3f", step, value.item(), found)
    return average.module.as_maps(mean, scale, fingerprint)
