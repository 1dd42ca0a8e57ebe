"""The commands and settings of a named run: its configuration with the data folders filled in, and missing data."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distilled_student.benchmark.suite import Run, Suite
from distilled_student.checkpoints.folder import CONFIG
from distilled_student.common.base_configs import read_config_file
from distilled_student.common.settings import find_config, flat
from distilled_student.distillation.config import DistillConfig, read_config, settings_fixed_on_resume
from distilled_student.host.overrides import override, set_key

DATA = "data"  # in a configuration, this stands for the folder of --data
# settings of a distillation that name folders of data, which may move after it
STUDENT_DATA = ("data.paths", "data.held_out", "data.augment.noise_root", "data.augment.rir_root")
CORPORA = {  # name of a corpus's folder: name for `prepare`
    "LibriSpeech": "librispeech",
    "speech_commands": "speech_commands",
    "voxceleb1": "voxceleb1",
}
OWN_CORPORA = {  # name of a folder that `prepare` does not make: what is in it
    "noise_and_speech": "recordings of noise, and of other people's speech without the keywords, in any folders",
    "librispeech_speakers": "recordings of further speakers, a folder for each, such as the readers of LibriSpeech",
    "made": "a copy of the embedded corpus, which `distilled-student demo` expands into ~/.cache/distilled-student",
}


@dataclass(frozen=True)
class Bench:
    """A suite, its folders, and the options that hold for all its runs.

    Attributes:
        data: Folder of the corpora in the layout of ``prepare``, and of ``teachers/NAME`` if the teachers are on disk.
        output: Folder of all runs and of the report.
        students: Folder of the distilled students. Suites can share it, so that each student is distilled only once.
        steps: Number of updates of every training, to try out the whole suite; None: as configured.
        device: As ``run_downstream.py --device``.
        distil, joint: Further ``key=value`` overrides for every distillation and for every run of ``-d multitask``.
    """

    suite: Suite
    data: Path
    output: Path
    students: Path
    steps: int | None = None
    device: str | None = None
    distil: list[str] = field(default_factory=list)
    joint: list[str] = field(default_factory=list)

    def weights(self, name: str) -> str:
        """The folder ``data/teachers/LAST-PART`` of a hub's name if it exists, otherwise the name."""
        folder = self.data / "teachers" / name.rpartition("/")[2]
        return str(folder) if folder.is_dir() else name

    # Distillation
    def student(self, run: Run) -> Path:
        """Folder of the student that a run starts from."""
        model = self.suite.models[run.model]
        folder = self.students / "-".join(filter(None, [Path(str(model.distill)).stem, model.student]))
        return folder / f"seed-{run.seed}" if self.suite.distill == "seeds" else folder

    def distillation(self, run: Run) -> tuple[DistillConfig, Path]:
        """The settings of the distillation that a run starts from, and their file."""
        model = self.suite.models[run.model]
        path, values = _distillation_file(str(model.distill))
        values |= {"student": model.student} if model.student else {}
        for key, value in _in_data(values, self.data):
            set_key(values, key.split("."), value, str(path))
        values |= self._teachers(values) | {"output": str(self.student(run))}
        values |= {"seed": run.seed} if self.suite.distill == "seeds" else {}
        if self.steps and values.get("steps") != 0:  # 0: a student that is initialised and not distilled
            values |= {"steps": self.steps, "log_every": self.steps}
        return read_config(values, path, self.distil), path

    def _teachers(self, values: dict[str, Any]) -> dict[str, Any]:
        """The keys of ``values`` that name teachers, with the folders of `weights`."""
        if not values.get("teachers"):
            return {"teacher": self.weights(str(values.get("teacher")))}
        return {"teachers": [one | {"teacher": self.weights(str(one.get("teacher")))} for one in values["teachers"]]}

    def student_settings(self, run: Run) -> dict[str, Any]:
        """All settings that a student depends on, without the folders of data and teacher: these may move later."""
        config, _ = self.distillation(run)
        fixed = settings_fixed_on_resume(config)
        settings = {key: value for key, value in flat(fixed).items() if key not in (*STUDENT_DATA, "teachers")}
        if config.teachers:
            settings["teachers"] = [one | {"teacher": Path(one["teacher"]).name} for one in fixed["teachers"]]
        return settings | {"teacher": Path(config.teacher).name, "steps": config.steps}

    def distil_command(self, run: Run) -> list[str]:
        """Arguments of ``distilled-student`` for the distillation that a run starts from; they also resume it."""
        config, _ = self.distillation(run)
        several = [vars(teacher) for teacher in config.teachers]
        locations: dict[str, Any] = {"teachers": several} if several else {"teacher": config.teacher}
        data = flat({"data": asdict(config.data)})
        locations |= {key: data[key] for key in STUDENT_DATA if data[key]} | {"output": config.output}
        pairs = [f"{key}={json.dumps(value)}" for key, value in locations.items()]
        pairs += [f"seed={config.seed}", f"steps={config.steps}"]
        pairs += [f"student={config.student}"] if self.suite.models[run.model].student else []
        return ["distill", str(self.suite.models[run.model].distill), *pairs, *self.distil]

    # Training in s3prl's runner
    def _configured(self, run: Run) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        """A run's configuration with its overrides, the overrides for ``-o``, and its data paths: key -> new value."""
        setting, model = self.suite.settings[run.setting], self.suite.models[run.model]
        kind = "multitask" if setting.downstream == "multitask" else "superb"
        config = read_config_file(find_config(setting.config, kind), kind)
        pairs = [f"config.{pair}" for pair in [*model.override, *setting.override]]
        if self.steps:
            keys = ("total_steps", "eval_step", "save_step", "log_step")
            pairs += [f"config.runner.{key}={self.steps}" for key in keys]
        pairs += self.joint if setting.downstream == "multitask" else []
        for pair in pairs:
            override(pair, Namespace(), config)
        return config, pairs, dict(_in_data(_used(config), self.data))

    def settings(self, run: Run) -> dict[str, Any]:
        """All settings that a run's result depends on, without its data folder; they identify the run."""
        setting, model = self.suite.settings[run.setting], self.suite.models[run.model]
        return {
            "upstream": model.upstream,
            "weights": model.weights or model.distill,
            "student": self.student_settings(run) if model.distill else None,
            "untrained": model.untrained,
            "trainable": setting.trainable,
            "select": model.select or setting.select,
            **_used(self._configured(run)[0]),
        }

    def configuration(self, run: Run) -> dict[str, Any]:
        """A run's whole configuration."""
        config = self._configured(run)[0]
        for pair in self.data_overrides(run):
            override(pair, Namespace(), config)
        return config

    def data_overrides(self, run: Run) -> list[str]:
        """``-o`` overrides that replace the configuration's data folder by `data`."""
        return [f"config.{key}={value}" for key, value in self._configured(run)[2].items()]

    def upstream_weights(self, run: Run) -> str | None:
        """Value of ``-k`` for a run; None: without ``-k``."""
        model = self.suite.models[run.model]
        if model.distill:
            return str(self.untrained_student(run) if model.untrained else self.student(run))
        return self.weights(model.weights) if model.weights else None

    def location_overrides(self, run: Run, expdir: Path) -> list[str]:
        """``-o`` overrides of all paths that may have changed since a checkpoint was written; it supplies the rest."""
        weights = self.upstream_weights(run)
        locations = [f"args.expdir={expdir}", *([f"args.upstream_ckpt={weights}"] if weights else [])]
        return [*locations, *self.data_overrides(run)]

    def command(self, run: Run, expdir: Path) -> list[str]:
        """Arguments of ``run_downstream.py`` for a run's training; they also resume it."""
        setting, model = self.suite.settings[run.setting], self.suite.models[run.model]
        arguments = ["-a", "-m", "train", "-u", model.upstream, "-d", setting.downstream, "-c", setting.config]
        if weights := self.upstream_weights(run):
            arguments += ["-k", weights]
        arguments += ["-s", model.select or setting.select, "--seed", str(run.seed), "-p", str(expdir)]
        arguments += ["-f"] if setting.trainable else []
        arguments += ["--device", self.device] if self.device else []
        return [*arguments, "-o", ",,".join([*self._configured(run)[1], *self.location_overrides(run, expdir)])]

    def untrained_student(self, run: Run) -> Path:
        """Folder of the student with random weights that an untrained run starts from."""
        return self.student(run).with_name(f"{self.student(run).name}-untrained")

    def data_paths(self, run: Run, distillation: bool) -> list[str]:
        """The files and folders in ``data`` that a run's training reads, or its distillation."""
        distill = self.suite.models[run.model].distill
        if distillation:
            paths = dict(_in_data(_distillation_file(distill)[1], self.data)) if distill else {}
        else:
            paths = self._configured(run)[2]
        return [name for value in paths.values() for name in (value if isinstance(value, list) else [value])]

    def missing(self, run: Run) -> list[str]:
        """The missing data of a run and of its distillation, a line for each corpus."""
        lines = self._missing_paths(self._configured(run)[2])
        return lines + (self.missing_to_distil(run) if self.suite.models[run.model].distill else [])

    def missing_to_distil(self, run: Run) -> list[str]:
        """The missing data of the distillation that a run starts from; nothing if the student exists."""
        if (self.student(run) / CONFIG).is_file():
            return []
        _, values = _distillation_file(str(self.suite.models[run.model].distill))
        return self._missing_paths(dict(_in_data(values, self.data)))

    def _missing_paths(self, values: Mapping[str, Any]) -> list[str]:
        """A line for each corpus of which a file is missing, or a folder is missing or empty."""
        names = [name for value in values.values() for name in (value if isinstance(value, list) else [value])]
        missing: dict[str, list[str]] = {}
        for path in map(Path, dict.fromkeys(names)):
            if not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
                missing.setdefault(path.relative_to(self.data).parts[0], []).append(str(path.relative_to(self.data)))
        return [self._line(corpus, paths) for corpus, paths in missing.items()]

    def _line(self, corpus: str, paths: list[str]) -> str:
        remedy = ""
        if corpus in CORPORA:
            remedy = f"; distilled-student prepare {CORPORA[corpus]} {self.data}"
        elif corpus in OWN_CORPORA:
            remedy = f": {OWN_CORPORA[corpus]}: see docs/own-data.md"
        return f"data missing: {', '.join(paths)} in {self.data}{remedy}"


def _distillation_file(name: str) -> tuple[Path, dict[str, Any]]:
    """The file of a distillation's settings, by name or path, and the settings in it."""
    path = find_config(name, "distill")
    return path, read_config_file(path, "distill")


def _used(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without tasks that the joint expert's schedule leaves out: their data is not needed."""
    expert = config["downstream_expert"]
    if not expert.get("schedule"):
        return config
    tasks = {name: task for name, task in expert["tasks"].items() if name in expert["schedule"]}
    return {**config, "downstream_expert": {**expert, "tasks": tasks}}


def _in_data(values: Any, root: Path, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys whose values are paths in ``data/``, and these values with ``data`` replaced by ``root``."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _in_data(value, root, f"{key}.{name}".lstrip("."))
    elif isinstance(values, list):
        moved = [next((v for _, v in _in_data(value, root)), value) for value in values]
        if moved != values:
            yield key, moved
    elif isinstance(values, str) and Path(values).parts[:1] == (DATA,):
        yield key, str(root / Path(values).relative_to(DATA))
