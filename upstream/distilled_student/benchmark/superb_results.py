"""Results of s3prl's own experts in the format of our results: keyword spotting and speaker verification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distilled_student.common.early_checks import checkpoints
from distilled_student.common.errors import UserError
from distilled_student.multitask import metrics as M

Evaluate = Callable[[Path], None]  # s3prl's evaluation of a checkpoint on its test data
Results = tuple[dict[str, Any], dict[str, np.ndarray]]


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Lines of ``NAME VALUE``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [(name, value) for name, _, value in (line.rpartition(" ") for line in lines if line.strip())]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def keyword_spotting(expdir: Path, config: dict[str, Any], evaluate: Evaluate) -> Results:
    """KS: evaluates the checkpoint that was best on development data on the test archive.

    Args:
        expdir: Folder of the training.
        config: Configuration of the training.
        evaluate: See `Evaluate`.

    Returns:
        ``{"kws": {"accuracy" in percent, "utterances"}}`` and ``kws_labels``, ``kws_predicted`` as class numbers.
    """
    best = expdir / "dev-best.ckpt"
    evaluate(best if best.is_file() else checkpoints(expdir)[-1])
    truth, predicted = _pairs(expdir / "test_truth.txt"), _pairs(expdir / "test_predict.txt")
    if not truth or [name for name, _ in truth] != [name for name, _ in predicted]:
        raise UserError(
            f"{expdir / 'test_predict.txt'}: does not list the utterances of test_truth.txt: evaluate again"
        )
    _, numbers = np.unique([label for _, label in [*truth, *predicted]], return_inverse=True)
    labels, answers = numbers[: len(truth)], numbers[len(truth) :]
    results = {"accuracy": 100 * float((labels == answers).mean()), "utterances": len(truth)}
    return {"kws": results}, {"kws_labels": labels, "kws_predicted": answers}


def speaker_verification(expdir: Path, config: dict[str, Any], evaluate: Evaluate) -> Results:
    """ASV: evaluates every saved checkpoint on the test trials; the best one counts, as in s3prl's documentation.

    Args: as of `keyword_spotting`.

    Returns:
        ``{"sv": {"eer" in percent, "last_eer" of the last checkpoint, "checkpoints", "trials"}}``, and of the best
        checkpoint ``sv_scores``, ``sv_labels``, ``sv_left``, ``sv_right`` (speakers of the two sides, counted from 0).
    """
    saved = checkpoints(expdir)
    found = []
    for checkpoint in saved:
        evaluate(checkpoint)
        found.append(np.array([float(score) for _, score in _pairs(expdir / "test_predict.txt")]))
    trials = Path(config["downstream_expert"]["datarc"]["test_meta_data"])
    lines = [line.split() for line in trials.read_text(encoding="utf-8").splitlines() if line.strip()]
    labels = np.array([int(line[0]) for line in lines])
    sides = [Path(name).parts[0] for line in lines for name in line[1:3]]
    left, right = np.unique(sides, return_inverse=True)[1].reshape(-1, 2).T
    errors = [100 * M.eer(scores, labels) for scores in found]
    best = int(np.argmin(errors))
    results = {
        "eer": errors[best],
        "last_eer": errors[-1],
        "min_dcf_0.05": M.min_dcf(found[best], labels, 0.05),
        "checkpoints": len(saved),
        "checkpoint": saved[best].name,
        "trials": len(labels),
    }
    return {"sv": results}, {"sv_scores": found[best], "sv_labels": labels, "sv_left": left, "sv_right": right}


EXPERTS: dict[str, Callable[[Path, dict[str, Any], Evaluate], Results]] = {
    "speech_commands": keyword_spotting,
    "sv_voxceleb1": speaker_verification,
}
