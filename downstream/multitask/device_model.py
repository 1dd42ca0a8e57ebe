"""What a device runs of a joint run: student, choice of features, heads; its scores are those of an evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.checkpoints.folder import load_student
from distilled_student.common.errors import UserError
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.multitask import metrics as M
from distilled_student.multitask.evaluate import find_checkpoint
from distilled_student.multitask.expert import BEST
from distilled_student.multitask.loader import EvaluationLoader
from distilled_student.multitask.tasks import SHORTEST, BaseTask, kws, sv
from distilled_student.student.lengths import is_exporting, mask_if_padded, zero_padding
from distilled_student.student.network import Student, StudentOutput


class JointOutput(NamedTuple):
    """What a joint model says; T is frames, D the student's width.

    Attributes:
        hidden_state: ``(batch, T, D)``, the student's last; zero behind ``frames (batch,)``, its valid ones.
        keyword_scores: ``(batch, classes)`` probabilities, or None without a keyword task.
        speaker_embedding: ``(batch, embedding)``, of any length, or None without speaker verification.
    """

    hidden_state: Tensor
    frames: Tensor
    keyword_scores: Tensor | None
    speaker_embedding: Tensor | None


class Features(nn.Module):
    """The features that ``-s`` and ``-l`` choose, as s3prl's ``Featurizer`` (upstream/interfaces.py) makes them.

    Args:
        key: ``hidden_states``, ``predictions``, ``last_hidden_state`` or ``concatenated``.
        layer: Of a list, the one that is taken; None: their sum under ``weights``, one a layer, which add up to 1.
        normalize: Bring each layer to zero mean and unit variance before the sum.
    """

    def __init__(
        self, key: str, layer: int | None = None, weights: Tensor | None = None, normalize: bool = False
    ) -> None:
        super().__init__()
        self.key, self.layer, self.normalize = key, layer, normalize
        self.register_buffer("weights", weights)

    def forward(self, output: StudentOutput) -> Tensor:
        """A student's output -> ``(batch, frames, features)``."""
        if self.key == "last_hidden_state":
            return output.last_hidden_state
        if self.key == "concatenated":
            return torch.cat(output.hidden_states, dim=2)
        layers = output.hidden_states if self.key == "hidden_states" else list(output.predictions.unbind(1))
        if self.weights is None:
            return layers[self.layer or 0]
        if self.normalize:
            layers = [F.layer_norm(x, x.shape[-1:]) for x in layers]
        return sum(weight * x for weight, x in zip(self.weights, layers, strict=True))


class JointModel(nn.Module):
    """A student and what hears it.

    Args:
        student: Without its prediction layers where ``features`` do not need them.
        tasks, choices: Of the expert, by name; empty for a student alone.
        gain: What every waveform is multiplied by.
    """

    def __init__(
        self,
        student: Student,
        features: Features,
        tasks: Mapping[str, BaseTask] | None = None,
        choices: Mapping[str, nn.Module] | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.student, self.select, self.gain = student, features, gain
        self.tasks, self.choices = nn.ModuleDict(tasks), nn.ModuleDict(choices)

    def task(self, kind: type[BaseTask]) -> str | None:
        """The name of the first task of a kind, such as ``kws.Task``."""
        return next((name for name, task in self.tasks.items() if isinstance(task, kind)), None)

    @property
    def labels(self) -> list[str]:
        """Classes of the keyword scores; empty without a keyword task."""
        name = self.task(kws.Task)
        return [] if name is None else list(self.tasks[name].labels)

    @property
    def calibration(self) -> tuple[float, float] | None:
        """Slope and offset that make a cosine of two embeddings a log-likelihood ratio; None where none was fitted."""
        name = self.task(sv.Task)
        slope, offset = (0.0, 0.0) if name is None else self.tasks[name].calibration[0].tolist()
        return (slope, offset) if slope else None

    def features(self, output: StudentOutput) -> Tensor:
        """What the tasks hear of a student's output: ``(batch, frames, features)``, as many frames."""
        return self.select(output)

    def heads(self, features: Tensor, frames: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Keyword probabilities ``(batch, classes)`` and embeddings ``(batch, embedding)``, each None without its task.

        ``features (batch, T, features)``, ``frames (batch,)`` of them valid; of a stream's window just as of a file.
        """
        found: dict[type[BaseTask], Tensor] = {}
        for kind in (kws.Task, sv.Task):
            if (name := self.task(kind)) is not None:
                found[kind] = self.tasks[name](self.choices[name](features), frames)
        scores = found.get(kws.Task)
        return None if scores is None else scores.softmax(dim=1), found.get(sv.Task)

    def as_host(self, x: Tensor, frames: Tensor, samples: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(batch, T, features)`` with the frames that s3prl takes from an utterance, and how many these are.

        The last valid one is repeated, as `match_host` does, and s3prl's ``Featurizer.tolist`` cuts each utterance to
        ``round(samples / shift)``: Python's and torch's rounding, half to even.
        """
        shift = self.student.config.frame_shift
        index = torch.arange((samples + shift - 1) // shift, device=x.device)[None, :]
        index = index.minimum(frames.to(x.device)[:, None] - 1)
        x = x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
        return x, torch.round(lengths.double() / shift).long().clamp(min=1)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> JointOutput:
        """``(batch, samples)`` float32 at 16 kHz in [-1, 1] and ``(batch,)`` valid samples.

        An utterance under 0.1 s counts as filled up with silence to that, as in an evaluation.
        """
        waveforms = zero_padding(waveforms, mask_if_padded(lengths, waveforms.shape[1], waveforms.device))
        if not is_exporting():  # a graph begins at SHORTEST
            waveforms = F.pad(waveforms, (0, max(0, SHORTEST - waveforms.shape[1])))
        lengths = lengths.clamp(min=SHORTEST)
        output = self.student(waveforms if self.gain == 1.0 else self.gain * waveforms, lengths)
        features, frames = self.as_host(self.features(output), output.lengths, waveforms.shape[1], lengths)
        return JointOutput(output.last_hidden_state, output.lengths, *self.heads(features, frames))


def _of_runner(runner: Any) -> JointModel:
    """The parts of s3prl's ``Runner`` that an evaluation uses."""
    upstream, featurizer, expert = runner.upstream.model, runner.featurizer.model, runner.downstream.model
    if not hasattr(expert, "choices"):
        raise UserError(f"{runner.args.init_ckpt}: is not a checkpoint of the multitask downstream")
    if not isinstance(upstream, StudentUpstream):
        raise UserError(f"{runner.args.init_ckpt}: its upstream is {runner.args.upstream}, not a distilled_student")
    weights = getattr(featurizer, "weights", None)
    features = Features(
        featurizer.feature_selection,
        featurizer.layer_selection,
        None if weights is None else weights.detach().softmax(dim=0),
        featurizer.normalize,
    )
    return JointModel(upstream.student, features, expert.tasks, expert.choices, expert.gain)


def open_joint(path: str | Path, checkpoint: str = BEST) -> JointModel:
    """The model of a joint run, or a student without heads; on the CPU, in eval mode, no gradients asked for.

    Args:
        path: An experiment folder of ``run_downstream.py -d multitask``, or what `load_student` reads.
        checkpoint: File in the experiment folder; see `find_checkpoint`.

    Raises:
        UserError: neither of these, a checkpoint of another downstream, or one whose upstream is not a student.
    """
    path = Path(path)
    if path.is_dir() and any(path.glob("*.ckpt")):
        from distilled_student.host.launch import open_runner

        model = _of_runner(open_runner(find_checkpoint(path, checkpoint), device="cpu"))
    else:
        model = JointModel(load_student(path), Features("last_hidden_state"))
    if model.select.key != "predictions":
        model.student.predictions = None  # nobody reads them
    return model.requires_grad_(False).eval()


class Measured(NamedTuple):
    """What a task's outputs are worth.

    Attributes:
        score: In percent, larger is better: `BaseTask.score`, an accuracy or a negative EER. summary: A line of it.
        threshold: Of keyword probabilities, where as many keywords are missed as others are taken for one, in percent.
    """

    score: float
    summary: str
    threshold: float | None


@torch.no_grad()
def measure(model: JointModel, run: Callable[[Tensor, Tensor], JointOutput], split: str, name: str) -> Measured:
    """Evaluate ``run``, the model itself or a graph in its place, on a task's ``dev`` or ``test``.

    One utterance at a time, as a device hears them.

    Raises:
        UserError: the data of this split are not there.
    """
    task, collected, keyword = model.tasks[name], [], []
    is_keyword = [not label.startswith("_") for label in model.labels]
    for wavs, _, labels, keys in EvaluationLoader({name: task.evaluation_data(split)}, {name: 1}):
        output = run(torch.from_numpy(np.stack(wavs)), torch.tensor([len(wavs[0])]))
        scores = output.keyword_scores
        if isinstance(task, kws.Task):
            best = scores[0, torch.tensor(is_keyword)].max().item()
            keyword.append((best, is_keyword[labels[0]]))
        collected += task.collect(scores if isinstance(task, kws.Task) else output.speaker_embedding, labels, keys)
    results, _ = copy.deepcopy(task).metrics(split, collected)  # on development data it fits the calibration anew
    threshold = threshold_of(*zip(*keyword, strict=True)) if keyword else None
    return Measured(task.score(results), task.summary(results), threshold)


def threshold_of(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Where both error rates of ``labels`` are nearest, halfway to the next score; None where one kind is missing."""
    if len(set(labels)) < 2:
        return None
    false_alarm, miss, thresholds = M.det_curve(scores, labels)
    place = int(np.argmax(false_alarm >= miss))
    return float(thresholds[place : place + 2].mean())
