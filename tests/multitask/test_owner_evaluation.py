"""Owner-and-word trials in an evaluation of a joint run: embeddings as on a device, and the best checkpoint."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers.trees import tasks, write_tone

from distilled_student.common.errors import UserError
from distilled_student.multitask import owner_trials
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.owner_evaluation import det_curves, interval_of_runs


class Logger:
    def add_scalar(self, *_: Any, **__: Any) -> None: ...


def corpora(folder: Path) -> dict[str, dict]:
    """The small corpora, with four takes of two lengths of each test speaker, who are three."""
    values = tasks(folder)
    for number, word in enumerate(("yes", "no")):
        for speaker in range(3):
            for take in range(4):
                seconds = 1.0 if take % 2 else 0.7
                file = folder / f"sc/test/{word}/new{speaker}_nohash_{take}.wav"
                write_tone(file, 150 + 200 * number + 37 * speaker, seconds, 10 * speaker + take)
    return values


def make_expert(folder: Path, values: dict, mode: str | None = "evaluate", **settings: Any) -> DownstreamExpert:
    torch.manual_seed(0)
    settings, runner = {"tasks": values, **settings}, {"gradient_accumulate_steps": 1}
    return DownstreamExpert(6, 160, settings, str(folder), config="my.yaml", seed=1, runner=runner, mode=mode).eval()


def frames(wavs: list) -> list[torch.Tensor]:
    """Features instead of an upstream's: six statistics of every 160 samples."""
    blocks = [torch.as_tensor(wav)[: len(wav) // 160 * 160].view(-1, 160) for wav in wavs]
    return [torch.fft.rfft(block).abs()[:, :6] for block in blocks]


def run(expert: DownstreamExpert, split: str) -> tuple[list[str], int]:
    """Names of checkpoints to save, and the number of encoded utterances."""
    records, encoded = defaultdict(list), 0
    with torch.no_grad():
        for wavs, *others in expert.get_dataloader(split):
            expert(split, frames(wavs), *others, records=records)
            encoded += len(wavs)
    return expert.log_records(split, records, Logger(), 1), encoded


@pytest.mark.parametrize("fill", [True, False])
def test_each_clip_has_the_embedding_that_a_device_computes_and_whole_clips_are_encoded_once(
    tmp_path: Path, fill: bool
) -> None:
    values = corpora(tmp_path)
    values["sv"] |= {"fill": fill, "crop_seconds": 0.8}
    expert = make_expert(tmp_path, values)
    _, encoded = run(expert, "test")
    clips = expert.tasks["kws"].spoken_clips("test")
    short = sum(clip.samples < 16_000 for clip in clips)
    of_tasks = sum(len(task.evaluation_data("test")) for task in expert.tasks.values())
    assert short == 12 and encoded == of_tasks + short, "only clips that the tasks fill in two ways are encoded twice"
    embeddings = []
    for clip in clips:
        waveform, _ = soundfile.read(tmp_path / "sc/test" / clip.key, dtype="float32")
        if fill and len(waveform) < 12_800:
            waveform = np.resize(waveform, 12_800)  # repeated
        with torch.no_grad():
            embeddings.append(expert.outputs("sv", frames([waveform]))[0].double().numpy())
    trials = owner_trials.make_trials(clips, [2, 3], 3)
    for place in range(0, len(trials.clip), 5):
        unit = [embeddings[c] / np.linalg.norm(embeddings[c]) for c in trials.enrolled[trials.enrolment[place]]]
        mean, spoken = np.mean(unit, axis=0), embeddings[trials.clip[place]]
        cosine = mean @ spoken / np.linalg.norm(mean) / np.linalg.norm(spoken)
        assert expert.arrays["test"]["owner_3_scores"][place] == pytest.approx(cosine, abs=1e-5)
    results = expert.results["test"]["owner"]
    assert results["enrolled_5"]["owners"] == 3 and results["clips"] == len(clips)
    curves = det_curves(expert.arrays["test"])
    assert len(curves) == 6 and "owner and word, 3 clips" in curves
    alone = interval_of_runs([expert.arrays["test"]])
    assert alone == pytest.approx(results["enrolled_3"]["owner_and_word"]["eer_interval"])


def test_the_owner_is_part_of_the_score_only_if_the_score_names_it(tmp_path: Path) -> None:
    values = corpora(tmp_path)
    plain, chosen = make_expert(tmp_path, values), make_expert(tmp_path, values, score={"kws": 0, "sv": 0, "owner": 2})
    for expert in (plain, chosen):
        run(expert, "test")
    results = plain.results["test"]
    assert plain.score(results) == results["kws"]["accuracy"] - results["sv"]["eer"]
    assert chosen.score(chosen.results["test"]) == -2 * results["owner"]["enrolled_3"]["owner_and_word"]["eer"]
    names, _ = run(chosen, "dev")
    assert names == ["best-dev.ckpt"] and chosen.best_score.item() <= 0


def test_a_training_makes_the_trials_only_for_its_score(tmp_path: Path) -> None:
    values = corpora(tmp_path)
    assert make_expert(tmp_path, values, "train").owner is None
    assert make_expert(tmp_path, values, "train", score={"owner": 1}).owner is not None


def test_a_score_of_the_owner_needs_both_tasks_and_clips_whose_speakers_are_known(tmp_path: Path) -> None:
    values = corpora(tmp_path)
    with pytest.raises(UserError, match=r"my.yaml: downstream_expert.score.owner: needs a task of keywords and a task"):
        make_expert(tmp_path, values, schedule={"kws": 1}, score={"owner": 1})
    values["kws"]["speaker_pattern"] = "(new)"
    expert = make_expert(tmp_path, values, score={"owner": 1})
    with pytest.raises(UserError, match=r"score.owner: .*tasks.kws has no trials for test: they need clips of two"):
        expert.get_dataloader("test")
    expert = make_expert(tmp_path, {**values, "kws": values["kws"] | {"speaker_pattern": "(new)"}})
    run(expert, "test")
    assert "owner" not in expert.results["test"], "one speaker makes no trials"
