"""Settings of stronger recipes: margin schedule, groups of clips, centring, time shift, unknown words drawn again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trees import OTHERS, WORDS, speech_commands, tasks, voxceleb
from test_expert import expert, frames

from distilled_student.common.settings import typed
from distilled_student.multitask.losses import SpeakerLoss
from distilled_student.multitask.tasks import kws, sv
from distilled_student.multitask.tasks.settings import LossSettings


@pytest.mark.parametrize("name", ["am", "aam"])
def test_the_margin_rises_linearly_to_its_full_value(name: str) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(6, 5), torch.arange(3).repeat(2)
    warmed = SpeakerLoss(LossSettings(name, margin=0.3, margin_warmup=4), 5, 3)
    for step in range(7):
        fixed = SpeakerLoss(LossSettings(name, margin=0.3 * min(1, step / 4)), 5, 3)
        fixed.weight.data = warmed.weight.data
        torch.testing.assert_close(warmed(x, labels), fixed(x, labels))
    assert warmed.step == 7


def test_a_loss_without_a_margin_in_the_file_has_its_own_default_margin() -> None:
    for name, margin in (("softmax", 0.0), ("angular", 4.0), ("am", 0.4), ("aam", 0.2)):
        assert typed(sv.Settings, {"loss": {"name": name}}, "F").loss.full_margin == margin


def test_the_contrastive_loss_is_added_with_its_weight_and_its_parameters_are_saved() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(8, 5), torch.arange(4).repeat(2)
    both = SpeakerLoss(LossSettings("aam", contrastive="ge2e", contrastive_weight=0.5), 5, 4)
    alone = SpeakerLoss(LossSettings("aam"), 5, 4)
    alone.load_state_dict(both.state_dict(), strict=False)
    torch.testing.assert_close(both(x, labels), alone(x, labels) + 0.5 * both.contrastive(x, labels))
    assert {"contrastive.scale", "contrastive.offset"} <= both.state_dict().keys()


def test_each_training_batch_has_groups_of_clips_of_one_speaker(tmp_path: Path) -> None:
    s = sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2, batch_size=4, clips_per_speaker=2, dev_trials=8)
    data = sv.Task(s, 4, 0, "F").training_data()
    labels = data.labels[data.order(np.random.default_rng(0))].reshape(-1, 2)
    assert len(labels) == 8 and (labels[:, 0] == labels[:, 1]).all()


def test_a_centred_embedding_lacks_the_mean_of_training_in_evaluation_alone(tmp_path: Path) -> None:
    s = sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2, dev_trials=8, center=True, embedding_size=3)
    task = sv.Task(s, 4, 0, "F")
    task.prepare_training()
    means = []
    for seed in range(5):
        torch.manual_seed(seed)
        embedding = task(torch.randn(4, 7, 4), torch.tensor([7, 7, 5, 3]))
        task.loss(embedding, torch.arange(4))
        means.append(embedding.detach().mean(dim=0))
    torch.testing.assert_close(task.center, torch.stack(means).mean(dim=0))
    x, lengths = torch.randn(2, 7, 4), torch.tensor([7, 6])
    torch.testing.assert_close(task.eval()(x, lengths), task.train()(x, lengths) - task.center)
    unit = torch.nn.functional.normalize(task.objective.weight, dim=1)
    torch.testing.assert_close(task.cohort(), (unit - unit.mean(dim=0)).detach())


def test_a_shifted_clip_is_the_clip_earlier_or_later_with_zeros_in_the_gap(tmp_path: Path) -> None:
    values = {"train_root": str(speech_commands(tmp_path, test=False) / "train"), "test_root": None, "keywords": WORDS}
    values |= {"validation_percentage": 0, "testing_percentage": 0}
    plain, shifted = (
        kws.Task(kws.Settings(**values, shift_seconds=shift), 4, 0, "F").training_data() for shift in (0.0, 0.1)
    )
    index = next(i for i, clip in enumerate(plain.clips) if clip.label == 2)
    clip, offsets = plain.item(index, np.random.default_rng(0)).waveform, set()
    for seed in range(30):
        found = shifted.item(index, np.random.default_rng(seed)).waveform
        rng = np.random.default_rng(seed)
        later = int(rng.integers(-1600, 1601))
        expected = torch.zeros(16_000)
        expected[max(0, later) : 16_000 + min(0, later)] = clip[max(0, -later) : 16_000 - max(0, later)]
        assert torch.equal(found, expected)
        offsets.add(later > 0)
    assert offsets == {True, False}


def test_unknown_words_are_drawn_again_in_each_pass(tmp_path: Path) -> None:
    root = speech_commands(tmp_path, speakers=20, test=False)
    values = {"validation_percentage": 0, "testing_percentage": 0, "unknown_each_pass": True}
    s = kws.Settings(train_root=str(root / "train"), test_root=None, keywords=WORDS, **values)
    data, seen = kws.Task(s, 4, 0, "F").training_data(), set()
    labels = np.array([clip.label for clip in data.clips])
    for number in range(100):
        order = data.order(np.random.default_rng(number))
        counts = np.bincount(labels[order], minlength=4).tolist()
        assert counts == [math.ceil(0.1 * 40), math.ceil(0.1 * 40), 20, 20] and len(set(order)) == len(order)
        seen |= {data.clips[i].key for i in order if labels[i] == 1}
    assert len(seen) == 20 * len(OTHERS)


def test_a_joint_training_with_all_of_them_lowers_both_losses(tmp_path: Path) -> None:
    values = tasks(tmp_path)
    values["kws"] |= {"shift_seconds": 0.05, "unknown_each_pass": True, "unknown_percentage": 50}
    values["sv"] |= {"clips_per_speaker": 2, "center": True, "augment": {"speed": 0.3}}
    values["sv"]["loss"] = {"name": "aam", "margin_warmup": 10, "contrastive": "prototypical"}
    joint = expert(tmp_path, tasks=values)
    optimizer, losses = torch.optim.Adam(joint.parameters(), lr=0.02), {"kws": [], "sv": []}
    for epoch in range(12):
        for wavs, task, labels, keys, _ in joint.get_dataloader("train", epoch):
            loss = joint(
                "train", frames(wavs), task, labels, keys, records={f"{task}/{n}": [] for n in ("loss", "accuracy")}
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[task].append(loss.item())
    for values in losses.values():
        assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clips_per_speaker": 3, "batch_size": 32}, "clips_per_speaker: needs a divisor of batch_size 32, not 3"),
        ({"loss": LossSettings("aam", contrastive="ge2e")}, "loss.contrastive: 'ge2e' needs clips_per_speaker"),
        (
            {"loss": LossSettings("aam", contrastive="ge2e"), "clips_per_speaker": 4, "batch_size": 4},
            "batch_size: 'ge2e' compares speakers: needs at least 2 \\* 4",
        ),
        ({"center": True, "head": "xvector"}, "center: cannot be used with head xvector"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sv.Settings(**settings)


def test_a_margin_schedule_of_a_loss_without_one_and_an_unknown_contrastive_loss_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.margin_warmup: needs 0 or more steps, of am or aam"):
        LossSettings("angular", margin_warmup=5)
    with pytest.raises(ValueError, match=r"loss.contrastive: 'triplet' is not one of ge2e, prototypical"):
        LossSettings("aam", contrastive="triplet")
    for percentage, reason in ((None, "null, which uses all words"), (0, "0, which uses none")):
        with pytest.raises(ValueError, match=f"unknown_each_pass: cannot be used with unknown_percentage: {reason}"):
            kws.Settings(unknown_each_pass=True, unknown_percentage=percentage)
    with pytest.raises(ValueError, match="shift_seconds"):
        kws.Settings(shift_seconds=2.0)
