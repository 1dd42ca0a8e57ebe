"""The part of a joint run that a device runs: student, choice of features, heads. Its scores equal an evaluation's."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.checkpoints.folder import load_student
from distilled_student.common.early_checks import BEST, JOINT
from distilled_student.common.errors import UserError
from distilled_student.common.progress import Progress
from distilled_student.common.shipped_models import model_path
from distilled_student.host.upstreams import PREDICTED, StudentUpstream
from distilled_student.multitask.calibration_folders import OPTION, folder_pieces
from distilled_student.multitask.evaluate import find_checkpoint
from distilled_student.multitask.loader import EvaluationLoader
from distilled_student.multitask.packed import PackedModel, load_packed
from distilled_student.multitask.short_utterances import Filled, Filling, filled, padded_rows
from distilled_student.multitask.speaker_calibration import (
    CALIBRATION_SECONDS,
    Piece,
    calibrate,
    development_pieces,
)
from distilled_student.multitask.tasks.base import KEYWORD_SCORES, SHORTEST, SPEAKER_EMBEDDING, BaseTask
from distilled_student.onnx import STREAM, DetectorSettings, read_metadata, stream_threshold
from distilled_student.student.lengths import checked_lengths, mask_if_padded, zero_padding
from distilled_student.student.network import Student, StudentOutput
from distilled_student.student.run_mode import is_exporting

log = logging.getLogger(__name__)


class JointOutput(NamedTuple):
    """The outputs of a joint model; T is frames, D the student's width.

    Attributes:
        hidden_state: ``(batch, T, D)``, the student's last layer; zero behind the valid frames.
        frames: ``(batch,)``, the number of valid frames.
        tasks: The output of each task, ``(batch, outputs)``, by the names in `JointModel.task_of_output`; empty without
            heads.
    """

    hidden_state: Tensor
    frames: Tensor
    tasks: dict[str, Tensor]

    @property
    def keyword_scores(self) -> Tensor | None:
        """``(batch, classes)`` probabilities, or None without a keyword task."""
        return self.tasks.get(KEYWORD_SCORES)

    @property
    def speaker_embedding(self) -> Tensor | None:
        """``(batch, embedding)``, not normalised, or None without speaker verification."""
        return self.tasks.get(SPEAKER_EMBEDDING)

    def named(self) -> dict[str, Tensor]:
        """All outputs by the names that they have in exported files."""
        return {"hidden_state": self.hidden_state, "frames": self.frames, **self.tasks}


class Features(nn.Module):
    """The features that ``-s`` and ``-l`` choose, computed as s3prl's ``Featurizer`` does (upstream/interfaces.py).

    Args:
        key: ``hidden_states``, ``predictions``, ``last_hidden_state``, ``concatenated`` or ``all``.
        layer: The layer that is used, if ``key`` is a list of layers; None: the sum of all under ``weights``, one
            weight per layer, which add up to 1.
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
        if self.key == "all":
            return torch.cat([*output.hidden_states, *output.predictions.unbind(1)], dim=2)
        layers = output.hidden_states if self.key == "hidden_states" else list(output.predictions.unbind(1))
        if self.weights is None:
            return layers[self.layer or 0]
        if self.normalize:
            layers = [F.layer_norm(x, x.shape[-1:]) for x in layers]
        return sum(weight * x for weight, x in zip(self.weights, layers, strict=True))


def _own_output_name(task_name: str, task: BaseTask) -> str:
    return task.output_name or task_name


def _tasks_of_outputs(tasks: Mapping[str, BaseTask]) -> dict[str, str]:
    """The name of each task's output -> the task's name.

    The names are sorted, so that the order of a file's outputs does not depend on the schedule. Of two tasks with the
    same `BaseTask.output_name` the first has this name, and the other ``TASK_NAME``.
    """
    names: dict[str, str] = {}
    for task_name, task in tasks.items():
        name = _own_output_name(task_name, task)
        names[name if name not in names else f"{task_name}_{name}"] = task_name
    return dict(sorted(names.items()))


class JointModel(nn.Module):
    """A student, and the heads of all tasks on its features.

    Args:
        student: May lack its prediction layers if ``features`` does not need them.
        tasks, choices: The expert's tasks and choices of layers, by name; empty for a student without heads.
        gain: What every waveform is multiplied by.

    Attributes:
        task_of_output: The name of each task's output -> the task's name.
        stored_thresholds: The threshold of each task that has one, by the task's name, if the model is a packed one:
            its development data are not here.
        is_packed: Whether it is a packed model.
        stored_detector: The settings of the stream in the folder of a packed model; None: there is no stream.
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
        self.task_of_output = _tasks_of_outputs(self.tasks)
        self.stored_thresholds: dict[str, float] = {}
        self.is_packed = False
        self.stored_detector: DetectorSettings | None = None

    @property
    def labels(self) -> list[str]:
        """The classes of the keyword scores; empty without a keyword task."""
        name = self.task_of_output.get(KEYWORD_SCORES)
        return [] if name is None else list(self.tasks[name].labels)

    def keyword_threshold(self) -> float | None:
        """The threshold of the keyword scores in exported files; None without a keyword task or development data.

        It is measured now, on all development data, unless the model is a packed one.
        """
        name = self.task_of_output.get(KEYWORD_SCORES)
        return None if name is None else measured_threshold(self, self, name)

    def detector_settings(self, threshold: float | None) -> DetectorSettings:
        """How a stream of this model decides: as the stream in a packed folder does, else by `stream_threshold`.

        Args:
            threshold: Of the keyword scores of utterances, see `keyword_threshold`.
        """
        return self.stored_detector or DetectorSettings(stream_threshold(threshold))

    def metadata(self, thresholds: Mapping[str, float | None]) -> dict[str, Any]:
        """What the tasks need to say in an exported file, by key; ``thresholds``: see `thresholds`.

        Of two tasks with the same `BaseTask.output_name` only the first is described.
        """
        found: dict[str, Any] = {}
        for output_name, name in self.task_of_output.items():
            if output_name == _own_output_name(name, self.tasks[name]):
                found |= self.tasks[name].device_metadata(thresholds.get(name))
        return found

    def features(self, output: StudentOutput) -> Tensor:
        """A student's output -> the features that the tasks use, ``(batch, frames, features)``."""
        return self.select(output)

    @property
    def fillings(self) -> dict[str, Filling]:
        """`BaseTask.filling` of the task of each output that has one, by the output's name."""
        return {output_name: self.tasks[name].filling for output_name, name in self.task_of_output.items()}

    def head(self, output_name: str, features: Tensor, frames: Tensor) -> Tensor:
        """The output of a task, ``(batch, outputs)``, as a device gets it: `BaseTask.device_output`.

        ``features (batch, T, features)`` of whole utterances or of a stream's window, with ``frames (batch,)`` valid.
        """
        name = self.task_of_output[output_name]
        return self.tasks[name].device_output(self.tasks[name](self.choices[name](features), frames))

    def heads(self, features: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """The outputs of all tasks by name, see `head`."""
        return {output_name: self.head(output_name, features, frames) for output_name in self.task_of_output}

    def as_host(self, x: Tensor, frames: Tensor, samples: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(batch, T, features)`` with the frames that s3prl uses of an utterance, and their number.

        The last valid frame is repeated, as in `match_host`. s3prl's ``Featurizer.tolist`` then cuts each utterance to
        ``round(samples / shift)`` frames, which Python and torch round half to even.
        """
        shift = self.student.config.frame_shift
        index = torch.arange((samples + shift - 1) // shift, device=x.device)
        index = index.minimum(frames.to(x.device).unsqueeze(1) - 1)
        x = x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))
        return x, torch.round(lengths.double() / shift).long().clamp(min=1)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> JointOutput:
        """The outputs for a batch of utterances.

        Each task gets an utterance that is shorter than those of its training as in an evaluation: `BaseTask.filling`.
        Hidden states do not depend on this: only an utterance shorter than 0.1 s is zero-padded to that length.

        Args:
            waveforms: ``(batch, samples)`` float32 at 16 kHz in [-1, 1].
            lengths: ``(batch,)``, the number of valid samples; None: nothing is padded.

        Raises:
            ValueError: see `Student.forward`.
        """
        is_padded = lengths is not None
        lengths = checked_lengths(waveforms, lengths)
        waveforms = zero_padding(waveforms, mask_if_padded(lengths, waveforms.shape[1], waveforms.device))
        if not is_exporting():  # an exported graph needs inputs of at least SHORTEST samples
            waveforms = F.pad(waveforms, (0, max(0, SHORTEST - waveforms.shape[1])))
        spoken, (batch, samples), lengths = lengths, waveforms.shape, lengths.clamp(min=SHORTEST)
        count_frames = self.student.frontend.frames
        apart = {filling for filling in self.fillings.values() if self._is_encoded_apart(filling, is_padded)}
        sizes = {SHORTEST if filling in apart else filling.samples for filling in self.fillings.values()}
        longer = [size for size in sizes if size > SHORTEST]
        rows = padded_rows(waveforms, lengths, longer, self._ignores_silence_behind, is_padded)
        output, features = self._encode(rows.waveforms, rows.lengths)
        of_size = {}
        for size in sizes:
            valid = lengths.clamp(min=size)
            x = features[rows.of_size[size]] if size in rows.of_size else features[:batch]
            of_size[size] = self.as_host(x, count_frames(valid), rows.waveforms.shape[1], valid)
        tasks = {
            name: self.head(name, *of_size[SHORTEST if filling in apart else filling.samples])
            for name, filling in self.fillings.items()
        }
        for filling in sorted(apart):
            tasks |= self._of_filled(filled(waveforms, spoken, filling, SHORTEST, is_padded), filling, tasks)
        frames, all_frames = count_frames(lengths), torch.arange(count_frames(samples), device=waveforms.device)
        hidden_state = output.last_hidden_state[:batch, all_frames]
        mask = mask_if_padded(frames, hidden_state.shape[1], hidden_state.device)
        return JointOutput(zero_padding(hidden_state, mask), frames, tasks)

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[StudentOutput, Tensor]:
        """The student's output for ``waveforms (rows, samples)``, and the features that the tasks use."""
        waveforms = waveforms if self.gain == 1.0 else self.gain * waveforms
        output = self.student(waveforms, lengths, predict=self.select.key in PREDICTED)
        return output, self.features(output)

    @property
    def _ignores_silence_behind(self) -> bool:
        """Whether no frame depends on the silence that follows an utterance.

        An encoder with a stride averages neighbouring frames, the last frame and the one after it, too.
        """
        config = self.student.config
        return config.causal and config.encoder_stride == 1

    def _is_encoded_apart(self, filling: Filling, is_padded: bool) -> bool:
        """Whether filled utterances are encoded apart (`filled`), not as rows of the batch (`padded_rows`).

        Repeated ones are longer than most keyword clips, and all rows of a batch have the length of the longest.
        """
        needs_own_rows = filling.samples > SHORTEST and not self._ignores_silence_behind
        return filling.repeats or (needs_own_rows and is_exporting() and not is_padded)

    def _of_filled(self, utterances: Filled | None, filling: Filling, tasks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of the tasks with this filling, from ``tasks`` where the utterance is long enough."""
        if utterances is None:
            return {}
        samples = utterances.waveforms.shape[1]
        lengths = torch.full((utterances.rows.shape[0],), samples)
        _, features = self._encode(utterances.waveforms, lengths)
        x, frames = self.as_host(features, self.student.frontend.frames(lengths), samples, lengths)
        names = [name for name, used in self.fillings.items() if used == filling]
        return {name: utterances.put(self.head(name, x, frames), tasks[name]) for name in names}


def _of_runner(runner: Any) -> JointModel:
    """The parts of s3prl's ``Runner`` that an evaluation uses, as one model."""
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


def _of_packed(packed: PackedModel) -> JointModel:
    features = Features(packed.features["key"], packed.features["layer"], packed.weights, packed.features["normalize"])
    model = JointModel(packed.student, features, packed.tasks, packed.choices, packed.gain)
    model.stored_thresholds, model.is_packed = packed.thresholds, True
    return model


def _detector_of(file: Path) -> DetectorSettings | None:
    """The settings in the metadata of a stream; None: there is no such file. Raises UserError for a damaged one."""
    if not file.is_file():
        return None
    try:
        return DetectorSettings.from_metadata(read_metadata(file))
    except ValueError as error:
        raise UserError(str(error)) from None


def as_packed(model: JointModel, folders: Sequence[Path] = ()) -> PackedModel:
    """The parts of a model with heads, with the thresholds of their decisions.

    Args:
        folders: What speaker scores are calibrated on instead of the development data, see `folder_pieces`.

    Raises:
        UserError: a folder cannot be used, or the model has no speaker task.
    """
    calibrate_speakers_on_device(model, seconds=math.inf, again=True, folders=folders)
    chosen = model.select
    features = {"key": chosen.key, "layer": chosen.layer, "normalize": chosen.normalize}
    found = {name: value for name, value in thresholds(model, model).items() if value is not None}
    return PackedModel(model.student, features, chosen.weights, model.gain, model.tasks, model.choices, found)


def open_joint(path: str | Path, checkpoint: str = BEST) -> JointModel:
    """The model of a joint run, or a student without heads; on the CPU, in eval mode, without gradients.

    Args:
        path: ``edge`` or ``tiny``, the models of this package; an experiment folder of
            ``run_downstream.py -d multitask``; a folder of ``distilled-student pack``; or a student that `load_student`
            reads.
        checkpoint: File in the experiment folder; see `find_checkpoint`.

    Raises:
        UserError: ``path`` is neither of these, the checkpoint is of another downstream, or its upstream is not a
            student.
    """
    path = model_path(path)
    if path.is_dir() and any(path.glob("*.ckpt")):
        from distilled_student.host.launch import open_runner

        model = _of_runner(open_runner(find_checkpoint(path, checkpoint), device="cpu"))
    elif (path / JOINT).is_file():
        model = _of_packed(load_packed(path))
        model.stored_detector = _detector_of(path / STREAM)
    else:
        model = JointModel(load_student(path), Features("last_hidden_state"))
    if model.select.key not in PREDICTED:
        model.student.predictions = None  # not used
    return model.requires_grad_(False).eval()


@torch.no_grad()
def calibrate_speakers_on_device(
    model: JointModel,
    seconds: float = CALIBRATION_SECONDS,
    again: bool = False,
    folders: Sequence[Path] = (),
) -> None:
    """Fit the `BaseTask.speaker_calibration` of the speaker task on embeddings of the model, if it has none.

    Without the data there is a warning, and the model keeps what it has. A packed model is not changed.

    Args:
        seconds: Development speech of each task, at most.
        again: Whether a calibration is replaced that was fitted before.
        folders: Folders of recordings that are used instead of the development data, see `folder_pieces`.

    Raises:
        UserError: one of ``folders`` cannot be used, or the model has no speaker task.
    """
    name = model.task_of_output.get(SPEAKER_EMBEDDING)
    if folders and name is None:
        raise UserError(f"{OPTION} {folders[0]}: the model has no speaker task: leave out {OPTION}")
    if name is None or model.is_packed or (model.tasks[name].speaker_calibration is not None and not again):
        return
    task = model.tasks[name]
    if folders:
        pieces = folder_pieces(folders, task.trained_speakers)
    else:
        try:
            pieces = development_pieces(model.tasks, seconds)
        except UserError as error:
            log.warning("%s: no calibration by length and number of enrolled clips is fitted: %s", task.key, error)
            return
    found = calibrate(pieces, piece_embedding(model))
    task.speaker_calibration = task.speaker_calibration if found is None else found


def piece_embedding(model: JointModel) -> Callable[[Piece], np.ndarray]:
    """What `calibrate` needs: the embedding ``(size,)`` of a piece of speech, as a device computes it."""

    def embed(piece: Piece) -> np.ndarray:
        waveform = piece.load()
        return model(waveform[None], torch.tensor([len(waveform)])).speaker_embedding[0].double().numpy()

    return embed


class Measured(NamedTuple):
    """An evaluation of one task.

    Attributes:
        score: `BaseTask.score`, in percent, larger is better: an accuracy or a negative EER.
        summary: The results in one line.
        threshold: `BaseTask.device_threshold` of the evaluated outputs; None if the task has no threshold.
    """

    score: float
    summary: str
    threshold: float | None


@torch.no_grad()
def measure(model: JointModel, run: Callable[[Tensor, Tensor], JointOutput], split: str, name: str) -> Measured:
    """Evaluate a task on ``dev`` or ``test``, one utterance at a time, as on a device.

    Args:
        run: The model itself, or an exported graph of it.
        name: The task.

    Raises:
        UserError: the data of this split are missing.
    """
    task = model.tasks[name]
    output_name = next(output for output, task_name in model.task_of_output.items() if task_name == name)
    outputs, labels, collected = [], [], []
    data = task.evaluation_data(split)
    with Progress(len(data), f"measuring {name} on {split}") as progress:
        for wavs, _, label, key, _ in EvaluationLoader({name: data}, {name: 1}):
            output = run(torch.from_numpy(np.stack(wavs)), torch.tensor([len(wavs[0])])).tasks[output_name]
            outputs.append(output[0])
            labels += label
            collected += task.collect(output, label, key)
            progress.update()
    results, _ = copy.deepcopy(task).metrics(split, collected)  # a copy: on development data sv fits its calibration
    threshold = task.device_threshold(torch.stack(outputs), labels) if task.has_threshold else None
    return Measured(task.score(results), task.summary(results), threshold)


def thresholds(model: JointModel, run: Callable[[Tensor, Tensor], JointOutput]) -> dict[str, float | None]:
    """The threshold of each task that has one: the stored one, or from the outputs of ``run`` on development data.

    None, and a warning, without either.

    ``run``: the model itself, or an exported graph of it.
    """
    return {name: measured_threshold(model, run, name) for name, task in model.tasks.items() if task.has_threshold}


def measured_threshold(model: JointModel, run: Callable[[Tensor, Tensor], JointOutput], name: str) -> float | None:
    """The threshold of one task, see `thresholds`."""
    if name in model.stored_thresholds:
        return model.stored_thresholds[name]
    try:
        return measure(model, run, "dev", name).threshold
    except UserError as error:
        log.warning("no threshold of %s, which takes development data: %s", name, error)
        return None
