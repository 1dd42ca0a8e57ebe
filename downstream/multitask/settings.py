"""The settings of the joint downstream: ``downstream_expert`` in the YAML file, checked when it is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.settings import typed
from distilled_student.corpora.held_out import check_number
from distilled_student.corpora.own_folder import LAYOUTS
from distilled_student.multitask.own_data import resolve_data
from distilled_student.multitask.tasks import task_module
from distilled_student.multitask.tasks.settings import WEIGHTED, TaskSettings, need_finite

SIDE_BY_SIDE = ("concatenated", "all")  # features of ``-s`` that hold several layers
TASKS = Path(__file__).parent / "tasks"
# keys of results.json next to the tasks' results, which a task's name must not replace
RESERVED = ("split", "checkpoint", "owner", "upstream", "head_parameters", "train_seconds", "device")


HIDDEN_STATES = "set the upstream's number of hidden states: that of its layers, and one for the front end"


@dataclass
class ExpertSettings:
    """``downstream_expert`` in the YAML file.

    Attributes:
        data: A folder of own recordings for both tasks, ``WORD/SPEAKER_*.wav`` or ``SPEAKER/WORD/*.wav``. Keywords are
            its words, people are held out (``dev_speakers``, ``test_speakers``), and the embedded corpus adds other
            words, background noise and speakers. It replaces the folders of the tasks. None: those are used.
        layout: How the files of ``data`` lie: ``WORD/SPEAKER_*``, ``SPEAKER/WORD`` or ``WORD/SPEAKER``, the last two
            with files in inner folders. None: found from the folders; files in inner folders are ``SPEAKER/WORD``,
            unless the outer folders alone are ``tasks.kws.keywords``.
        dev_speakers: The number of people of ``data``, or their share, who choose the best checkpoint and are not
            trained on. A share is rounded: to one or more of up to four people, to two or more of five or more.
        test_speakers: The number or share of further people who are held out for a test. A share is nobody of fewer
            than ten people.
        initial_heads: Whether the heads start from those of the model that ``-k`` names (``edge``, or a folder that
            ``distilled-student pack`` wrote), where they have the same shape. Otherwise they start at random. A branch
            of a task starts from that of the same task of the model, if it has one; a head that was trained behind a
            branch needs one.
        tasks: A group of settings for each task, by the task's name. ``module`` in a group names the task's Python
            module; it is needed for a task that is not part of this package.
        schedule: Batches of each task in a cycle, in this order. Only the tasks named here are used: one name means
            single-task training. Empty: one batch of each task.
        update: ``alternate`` (an optimizer step for each batch) or ``sum`` (a step for each cycle, on the sum of its
            losses).
        conflict: What is done with the gradients of several tasks on the upstream; needs ``update: sum`` and ``-f``.
            ``log``: their cosine goes to the log. ``pcgrad``: in addition, conflicting parts are projected out before
            the sum (Yu et al. 2020). None: nothing.
        optimizer_per_task: With ``update: alternate`` and ``-f``: each task has its own state of the optimizer (Adam's
            moments) for the weights that the tasks share. The learning rates are the same.
        layers: Number of layers in the features: the hidden states with ``-s concatenated``, and the predictions with
            ``-s all``. If it is more than 1, each task can use one of them, or a weighted sum of its own: see ``layer``
            of the tasks.
        gain_db: Gain of every waveform in decibels, in training and evaluation.
        score: Weight of each task's score in the choice of the best checkpoint; 1 for tasks that are not named.
            ``owner`` is the weight of the trials of owner and word, 0 if it is not named: the score is their negative
            EER in percent with three enrolled clips. ``{kws: 0, sv: 0, owner: 1}`` chooses by them alone.
        num_workers: Processes that read data, for each task.
        seed: Seed of the data; None: the runner's ``--seed``.
    """

    data: str | None = None
    layout: str | None = None
    dev_speakers: int | float = 0.2
    test_speakers: int | float = 0.2
    initial_heads: bool = False
    tasks: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, int] = field(default_factory=dict)
    update: str = "alternate"
    conflict: str | None = None
    optimizer_per_task: bool = False
    layers: int = 1
    gain_db: float = 0.0
    score: dict[str, float] = field(default_factory=dict)
    num_workers: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f"layout: '{self.layout}' is not {', '.join(LAYOUTS)}")
        check_number("dev_speakers", self.dev_speakers)
        check_number("test_speakers", self.test_speakers)
        self.schedule = self.schedule or dict.fromkeys(self.tasks, 1)
        if not self.schedule:
            raise ValueError("tasks: needs one or more tasks")
        for name in self.tasks:
            if name in RESERVED:
                raise ValueError(f"tasks.{name}: is a key of results.json; choose another name")
        for key, names in (("schedule", self.schedule), ("score", self.score)):
            for name in names:
                if name not in self.tasks and (key, name) != ("score", "owner"):
                    raise ValueError(f"{key}.{name}: no such task in tasks ({', '.join(self.tasks)})")
        if min(self.schedule.values()) < 1:
            raise ValueError("schedule: needs 1 or more batches of each task that it names")
        if self.update not in ("alternate", "sum"):
            raise ValueError(f"update: '{self.update}' is not alternate or sum")
        if self.conflict not in (None, "log", "pcgrad"):
            raise ValueError(f"conflict: '{self.conflict}' is not log or pcgrad")
        if self.conflict and (self.update != "sum" or len(self.schedule) < 2):
            raise ValueError(f"conflict: {self.conflict} needs update: sum and two or more tasks in the schedule")
        if self.optimizer_per_task and self.update != "alternate":
            raise ValueError("optimizer_per_task: needs update: alternate, because a step on a sum has no task")
        if self.optimizer_per_task and len(self.schedule) < 2:
            raise ValueError("optimizer_per_task: needs two or more tasks in the schedule")
        weights = [self.score.get(name, 1.0) for name in self.schedule] + [self.score.get("owner", 0.0)]
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"score: needs weights of 0 or more, one above 0 in the schedule, not {self.score}")
        if self.layers < 1:
            raise ValueError("layers: needs 1 or more")
        if self.num_workers < 0:
            raise ValueError("num_workers: needs 0 or more")
        if self.seed is not None and self.seed < 0:
            raise ValueError("seed: needs 0 or more")
        need_finite(asdict(self))

    @property
    def branched(self) -> list[str]:
        """The tasks of the schedule with a branch, in the order of their branches."""
        groups = {name: self.tasks[name] for name in self.schedule}
        return [name for name, group in groups.items() if isinstance(group, Mapping) and group.get("branch")]

    @property
    def cycle(self) -> int:
        """Batches in a cycle of the schedule."""
        return sum(self.schedule.values())


def resolved_settings(group: Any, where: str) -> ExpertSettings:
    """``downstream_expert``, checked; `resolve_data` completes ``group`` in place. ``where``: as in `resolve_data`."""
    settings = typed(ExpertSettings, group, where)
    resolve_data(group, where)
    return settings if settings.data is None else typed(ExpertSettings, group, where)


def check_runner(settings: ExpertSettings, runner: Mapping[str, Any], selected: str, where: str) -> None:
    """Check that the runner's settings fit the expert's.

    Args:
        runner: The group ``runner`` of the YAML file. selected: The features of ``-s``. where: The file, for messages.

    Raises:
        UserError: they do not fit; names the key.
    """
    accumulate = int(runner.get("gradient_accumulate_steps", 1))
    if settings.update == "sum" and accumulate != settings.cycle:
        reason = f"update: sum needs {settings.cycle}, the batches of a cycle"
        raise UserError(f"{where}: runner.gradient_accumulate_steps: {reason}")
    if float(runner.get("evaluate_ratio", 1)) != 1:
        raise UserError(f"{where}: runner.evaluate_ratio: needs 1: verification trials need all their utterances")
    if settings.layers > 1 and selected not in SIDE_BY_SIDE:
        reason = f"{settings.layers} needs -s concatenated or all, not -s {selected}"
        raise UserError(f"{where}: downstream_expert.layers: {reason}: add -s concatenated, or set layers to 1")
    if settings.branched and (selected != "concatenated" or settings.layers < 2):
        reason = "needs -s concatenated and layers, the number of hidden states of the student"
        raise UserError(f"{where}: downstream_expert.tasks.{settings.branched[0]}.branch: {reason}")


def check_shared_weights(settings: ExpertSettings, optimizer: Mapping[str, Any], is_trained: bool, where: str) -> None:
    """Check what a training needs whose tasks meet in the upstream's weights: see the keys that it reads.

    Args:
        optimizer: The group ``optimizer`` of the YAML file. is_trained: ``-f``. where: The file, for messages.

    Raises:
        UserError: it cannot work; names the key.
    """
    for key in ("conflict", "optimizer_per_task"):
        if getattr(settings, key) and not is_trained:
            raise UserError(f"{where}: downstream_expert.{key}: needs -f: the tasks share the upstream's weights alone")
    if settings.branched and not is_trained:
        reason = "needs -f: without training it is the student's last layer"
        raise UserError(f"{where}: downstream_expert.tasks.{settings.branched[0]}.branch: {reason}")
    name = str(optimizer.get("name"))
    if settings.optimizer_per_task and name.endswith("_with_schedule"):
        reason = f"{name} changes its learning rate by the steps of each task: use TorchOptim and a scheduler"
        raise UserError(f"{where}: downstream_expert.optimizer_per_task: {reason}")


class TaskEntry(NamedTuple):
    """An entry under ``tasks:``: the task's module, its checked settings, and ``FILE: dotted.key`` for messages."""

    module: ModuleType
    settings: TaskSettings
    key: str

    def check_layer(self, layers: int, selected: str) -> None:
        """Raise UserError if the task uses a layer that the features of ``-s`` do not have, of ``layers`` there are."""
        expert, _, name = self.key.rpartition(".tasks.")
        layer = self.settings.layer
        if layer == WEIGHTED and selected in SIDE_BY_SIDE and layers == 1:
            reason = f"{name}.layer: {WEIGHTED} needs the number of layers in -s {selected}"
            raise UserError(f"{expert}.layers: {reason}")
        if isinstance(layer, int) and not 0 <= layer < layers:
            raise UserError(f"{self.key}.layer: {layer} is not one of layers: {layers}, counted from 0")

    def width(self, features: int, layers: int, branches: int = 0) -> int:
        """The features of a frame that the task uses, of ``features`` in all layers and branches together.

        Raises:
            UserError: ``features`` cannot be divided into ``layers``.
        """
        if features % (layers + branches):
            expert = self.key.rpartition(".tasks.")[0]
            raise UserError(
                f"{expert}.layers: {features} features cannot be divided into {layers} layers: {HIDDEN_STATES}"
            )
        of_one = features // (layers + branches)
        uses_all = self.settings.layer is None and not self.settings.branch
        return layers * of_one if uses_all else of_one

    def layer(self, layers: int, branched: Sequence[str]) -> int | str | None:
        """The layer that the task uses: its branch, which follows the layers, or its setting."""
        name = self.key.rpartition(".")[2]
        return layers + branched.index(name) if name in branched else self.settings.layer


def read_tasks(settings: ExpertSettings, where: str) -> dict[str, TaskEntry]:
    """All entries under ``tasks:``, checked whether the schedule uses them or not.

    Raises:
        UserError: an unknown task, an unknown key, a wrong type or an impossible value; names file and key.
    """
    entries = {}
    for name, group in settings.tasks.items():
        key = f"{where}: downstream_expert.tasks.{name}"
        if group is not None and not isinstance(group, Mapping):
            raise UserError(f"{key}: expected a group of keys, found '{group}'")
        values = dict(group or {})
        module = task_module(name, values.pop("module", None), key)
        entries[name] = TaskEntry(module, typed(module.Settings, values, key), key)
    return entries


def check_early(
    config: Mapping[str, Any], selected: str, mode: str, where: str, is_trained: bool | None = None
) -> None:
    """Check what can be checked without importing torch: keys, values and, for training, the folders of the data.

    A task that has no module ``tasks/NAME_settings.py`` is checked when it is built.

    Args:
        config: All sections of the YAML file. selected: The features of ``-s``.
        mode: ``train``, ``evaluate`` or ``inference``. where: The file, for messages.
        is_trained: Whether the upstream is trained; None: not known.

    Raises:
        UserError: an unknown task or key, a wrong type, an impossible value, a missing folder.
    """
    expert = f"{where}: downstream_expert"
    settings = resolved_settings(config["downstream_expert"], expert)
    checked: dict[str, TaskSettings] = {}
    for name, group in settings.tasks.items():
        key = f"{expert}.tasks.{name}"
        if group is not None and not isinstance(group, Mapping):
            raise UserError(f"{key}: expected a group of keys, found '{group}'")
        values = dict(group or {})
        if "module" in values:
            continue
        if (TASKS / f"{name}_settings.py").is_file():
            module = importlib.import_module(f"distilled_student.multitask.tasks.{name}_settings")
            checked[name] = typed(module.Settings, values, key)
        elif importlib.util.find_spec(f"distilled_student.multitask.tasks.{name}") is None:
            known = [file.stem.removesuffix("_settings") for file in TASKS.glob("*_settings.py")]
            raise UserError(f"{key}: no task of this name{did_you_mean(name, known)}")
    check_runner(settings, config["runner"], selected, where)
    if mode == "train" and is_trained is not None:
        check_shared_weights(settings, config["optimizer"], is_trained, where)
    for name in settings.schedule if mode == "train" else ():
        if name in checked:
            checked[name].check_splits(f"{expert}.tasks.{name}", config["runner"].get("eval_dataloaders") or ())
            checked[name].check_folders(f"{expert}.tasks.{name}")
