"""An experiment folder to results.json: both tasks' metrics and the upstream's cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilled_student.common.errors import UserError
from distilled_student.common.files import write_json, write_whole
from distilled_student.common.plots import plot_det
from distilled_student.common.provenance import write_provenance
from distilled_student.host.saved_runs import checkpoints
from distilled_student.multitask import metrics as M
from distilled_student.multitask.expert import BEST
from distilled_student.student import cost

TIMING = "timing.json"


def find_checkpoint(expdir: Path, name: str = BEST) -> Path:
    """``name`` in ``expdir``; for the default name also the newest ``states-STEP.ckpt``, with a message.

    Raises:
        UserError: there is none.
    """
    if (expdir / name).is_file():
        return expdir / name
    saved = checkpoints(expdir)
    if name != BEST:  # who names one means it
        raise UserError(f"{expdir / name}: no such checkpoint")
    if not saved:
        raise UserError(f"{expdir / name}: no such checkpoint, nor a states-*.ckpt beside it")
    print(f"{expdir / name}: no such checkpoint; evaluating {saved[-1].name}")
    return saved[-1]


def rounded(values: Any) -> Any:
    """Results to six digits: how products are cut up for a batch size or a number of threads shows behind them."""
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
) -> dict[str, Any]:
    """Run a split and write ``EXPDIR/results.json``, its scores and labels as ``scores-SPLIT.npz``, ``det-SPLIT.png``.

    Args:
        trials: Another list of test trials, a file or a name in the speakers' folder, such as VoxCeleb1's E and H; its
            name goes into the names of what is written: ``results-LIST.json``.

    Returns:
        ``{"split", "checkpoint", "kws": {...}, "sv": {...}, "upstream": {"name", "parameters", "macs_per_second"}}``:
        accuracies and EER in percent. The same bytes at every call; beside it are ``timing.json``, the upstream's
        real-time factor on this machine, and ``provenance-SPLIT.json``, what the results depend on.

    Raises:
        UserError: no checkpoint, one of another kind, data that is missing, or a split that is not dev or test.
    """
    if split not in ("dev", "test"):
        raise UserError(f"--split {split}: expected dev or test")
    from distilled_student.host.launch import open_runner

    expdir, suffix = Path(expdir), ""
    if trials is not None:
        if split != "test":
            raise UserError(f"--trials {trials}: are test trials; --split {split} has its own")
        suffix, file = f"-{Path(trials).stem}", Path(trials).absolute()
        overrides = [*overrides, f"config.downstream_expert.tasks.sv.trials={file if file.is_file() else trials}"]
    path = find_checkpoint(expdir, checkpoint)
    runner = open_runner(path, device=device, overrides=overrides)
    expert, upstream = runner.downstream.model, runner.upstream.model
    if not hasattr(expert, "results"):
        raise UserError(f"{path}: is not a checkpoint of the multitask downstream")
    if trials is not None and "sv" not in expert.tasks:
        raise UserError(f"--trials {trials}: {path} has no task sv")
    runner.args.evaluate_split = split
    runner.evaluate()
    costs = cost.summary(upstream)
    write_json(expdir / TIMING, {"rtf": costs.pop("rtf")})
    results = {
        "split": split,
        "checkpoint": path.name,
        **expert.results[split],
        "upstream": {"name": runner.args.upstream, **costs},
        "head_parameters": {name: cost.parameters(task.head) for name, task in expert.tasks.items()},
    }
    scores, arrays = expdir / f"scores-{split}{suffix}.npz", expert.arrays[split]
    np.savez_compressed(packed := io.BytesIO(), **arrays)
    write_whole(expdir, {scores.name: packed.getvalue()})
    kinds = [("cosine", "sv_scores"), ("AS-norm", "sv_as_norm_scores")]
    curves = {name: M.det_curve(arrays[key], arrays["sv_labels"])[:2] for name, key in kinds if key in arrays}
    if curves:
        plot_det(expdir / f"det-{split}{suffix}.png", curves)
    config = {**runner.config, "downstream_expert": expert.resolved()}
    settings = {"checkpoint": path.name, "arguments": vars(runner.args), "config": config}
    data = expert.fingerprints(split)
    write_provenance(expdir, settings, expert.seed, data, f"provenance-{split}{suffix}.json")
    results = rounded(results)
    write_json(expdir / f"results{suffix}.json", results)
    return results
