"""Evaluates an experiment folder: the tasks' metrics and the upstream's cost go into its ``results.json``."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilled_student.common.early_checks import BEST, checkpoints, held_instead
from distilled_student.common.errors import UserError
from distilled_student.common.files import write_files, write_json
from distilled_student.common.plots import plot_det
from distilled_student.common.provenance import weights_fingerprint, write_provenance
from distilled_student.multitask import metrics as M
from distilled_student.multitask.model_card import write_card
from distilled_student.multitask.owner_evaluation import det_curves
from distilled_student.multitask.tasks.base import BaseTask
from distilled_student.student import cost

log = logging.getLogger(__name__)

TIMING = "timing.json"


def find_checkpoint(expdir: Path, name: str = BEST) -> Path:
    """The checkpoint ``name`` in ``expdir``; without a best checkpoint the newest ``states-STEP.ckpt``, with a message.

    Raises:
        UserError: there is no such file.
    """
    if (expdir / name).is_file():
        return expdir / name
    saved = checkpoints(expdir)
    if name != BEST:  # no other checkpoint may replace one that the user has chosen
        raise UserError(f"{expdir / name}: no such checkpoint")
    if not saved:
        if not expdir.is_dir():
            raise UserError(f"{expdir}: no such folder")
        held = held_instead(expdir)
        raise UserError(f"{expdir / name}: no such checkpoint, and no states-*.ckpt in its folder{held}")
    print(f"{expdir / name}: no such checkpoint; evaluating {saved[-1].name}")
    return saved[-1]


def rounded(values: Any) -> Any:
    """Results with six digits: further ones depend on the batch size and the number of threads."""
    if isinstance(values, float):
        return float(f"{values:.6g}")
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return [rounded(value) for value in values] if isinstance(values, list) else values


def evaluate(
    expdir: str | Path,
    split: str = "test",
    checkpoint: str = BEST,
    device: str | None = None,
    overrides: Sequence[str] = (),
    trials: str | None = None,
    trials_root: str | None = None,
    speaker_pattern: str | None = None,
) -> dict[str, Any]:
    """Evaluate a split and write ``results.json``, ``scores-SPLIT.npz`` and ``det-SPLIT.png`` into ``expdir``.

    Of a run with keywords and speakers also ``det-owner-SPLIT.png``, the curves of the owner-and-word trials.

    ``results.json`` has the same bytes at every call. ``timing.json`` holds the upstream's real-time factor on this
    machine, and ``provenance-SPLIT.json`` everything that the results depend on. ``README.md`` is the run's model card.

    Args:
        split: ``dev`` or ``test``.
        checkpoint: File in ``expdir``, see `find_checkpoint`.
        device: ``cpu`` or ``cuda``; None: what the machine has.
        overrides: ``config.KEY=VALUE`` in the saved configuration.
        trials: Another list of test trials of the task ``sv``, such as VoxCeleb1's E and H: a file, or a name in the
            task's ``root``. The names of the files that are written then end with its name: ``results-LIST.json``.
        trials_root: Folder of this list's files, where it is not the task's ``root``.
        speaker_pattern: The task's setting of this name for this list: where in the path of a file the speaker is.

    Returns:
        ``{"split", "checkpoint", TASK: {...}, ..., "owner": {...}, "upstream": {"name", "parameters",
        "macs_per_second"}, "head_parameters": {TASK: ...}}``, the content of ``results.json``; accuracies and EER
        in percent.

    Raises:
        UserError: no checkpoint, a checkpoint of another downstream, missing data, or another split.
    """
    if split not in ("dev", "test"):
        raise UserError(f"--split {split}: expected dev or test")
    from distilled_student.host.launch import open_runner

    expdir, suffix = Path(expdir), ""
    if trials is not None:
        if split != "test":
            raise UserError(f"--trials {trials}: a list of test trials cannot be used with --split {split}")
        suffix, file = f"-{Path(trials).stem}", Path(trials).absolute()
        overrides = [*overrides, f"config.downstream_expert.tasks.sv.trials={file if file.is_file() else trials}"]
    if trials_root is not None:
        if trials is None:
            raise UserError(f"--trials-root {trials_root}: needs --trials, the list whose files are in this folder")
        if not Path(trials_root).is_dir():
            raise UserError(f"--trials-root {trials_root}: no such folder")
        overrides = [*overrides, f"config.downstream_expert.tasks.sv.trials_root={Path(trials_root).absolute()}"]
    if speaker_pattern is not None:
        if trials is None:
            raise UserError(f"--speaker-pattern {speaker_pattern}: needs --trials, the list whose speakers it finds")
        overrides = [*overrides, f"config.downstream_expert.tasks.sv.speaker_pattern={speaker_pattern!r}"]
    path = find_checkpoint(expdir, checkpoint)
    runner = open_runner(path, device=device, overrides=overrides)
    expert, upstream = runner.downstream.model, runner.upstream.model
    if not hasattr(expert, "results"):
        raise UserError(f"{path}: is not a checkpoint of the multitask downstream")
    if trials is not None and "sv" not in expert.tasks:
        raise UserError(f"--trials {trials}: {path} has no task sv")
    runner.args.evaluate_split = split
    runner.evaluate()  # fills the expert's results and arrays

    costs = cost.summary(upstream)
    timing = {key: costs.pop(key) for key in ("rtf", "other_load", "with_other_load")}
    if timing["with_other_load"]:
        load = f"other processes used {timing['other_load']:g} cores"
        log.warning("%s: the real-time factor is too high: %s while it was measured", expdir / TIMING, load)
    write_json(expdir / TIMING, timing)
    results = rounded(
        {
            "split": split,
            "checkpoint": path.name,
            **expert.results[split],
            "upstream": {"name": runner.args.upstream, **costs},
            "head_parameters": {name: cost.parameters(task.head) for name, task in expert.tasks.items()},
        }
    )
    arrays = expert.arrays[split]
    np.savez_compressed(packed := io.BytesIO(), **arrays)
    write_files(expdir, {f"scores-{split}{suffix}.npz": packed.getvalue()})
    if curves := _det_curves(expert.tasks, arrays):
        plot_det(expdir / f"det-{split}{suffix}.png", curves)
    if curves := det_curves(arrays):
        plot_det(expdir / f"det-owner-{split}{suffix}.png", curves, "Owner, and owner with the expected keyword")
    config = {**runner.config, "downstream_expert": expert.resolved()}
    settings = {"checkpoint": path.name, "arguments": vars(runner.args), "config": config}
    data = expert.fingerprints(split)
    models = {"upstream": runner.upstream_provenance(), "downstream": weights_fingerprint(expert)}
    write_provenance(expdir, settings, expert.seed, data, f"provenance-{split}{suffix}.json", models)
    write_json(expdir / f"results{suffix}.json", results)
    if not suffix:
        of_training = getattr(runner.init_ckpt.get("Args"), "override", None)
        arguments = vars(runner.args) | {"override": of_training}  # instead of this evaluation's
        write_card(expdir, expert.tasks, results, arguments, runner.init_ckpt.get("Step"))
    return results


def _det_curves(
    tasks: Mapping[str, BaseTask], arrays: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """False alarm and miss rates by a curve's label: of the scores in `BaseTask.det_scores` that there are."""
    curves = {}
    for name, task in tasks.items():
        for label, key in task.det_scores.items():
            if (scores := arrays.get(f"{name}_{key}")) is not None:
                label = label if label not in curves else f"{name}, {label}"
                curves[label] = M.det_curve(scores, arrays[f"{name}_labels"])[:2]
    return curves
