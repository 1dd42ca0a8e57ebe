"""The joint downstream: order of batches, losses, evaluation, the best checkpoint, and wrong settings."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from helpers.trees import tasks

from distilled_student.common.errors import UserError
from distilled_student.multitask.alternation import AlternationLoader
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.loader import equal_length_batches


class Logger:
    def add_scalar(self, *_: Any, **__: Any) -> None: ...


def expert(folder: Path, runner: dict | None = None, **settings: Any) -> DownstreamExpert:
    torch.manual_seed(0)
    values = {"tasks": tasks(folder), **settings}
    runner = runner or {"gradient_accumulate_steps": 1}
    return DownstreamExpert(6, 160, values, str(folder / "exp"), config="my.yaml", seed=1, runner=runner)


def frames(wavs: list) -> list[torch.Tensor]:
    """Features in place of an upstream's: six statistics of every 160 samples."""
    features = []
    for wav in wavs:
        wav = torch.as_tensor(wav)
        blocks = wav[: len(wav) // 160 * 160].view(-1, 160)
        features.append(torch.fft.rfft(blocks).abs()[:, :6])
    return features


def train_batches(e: DownstreamExpert, epoch: int = 0) -> Iterator[tuple]:
    for wavs, *others in e.get_dataloader("train", epoch=epoch):
        yield frames(wavs), *others


def run(e: DownstreamExpert, split: str, step: int = 1) -> list[str]:
    records: dict = defaultdict(list)
    with torch.no_grad():
        for wavs, *others in e.eval().get_dataloader(split):
            assert len({len(w) for w in wavs}) == 1  # no padding
            e(split, frames(wavs), *others, records=records, batch_id=0)
    return e.log_records(split, records, Logger(), step, batch_ids=[], total_batch_num=1)


@pytest.mark.parametrize("schedule", [{"kws": 1, "sv": 1}, {"kws": 2, "sv": 1}, {"sv": 1, "kws": 3}])
def test_batches_come_in_the_order_and_ratio_of_the_schedule(tmp_path: Path, schedule: dict) -> None:
    loader = expert(tmp_path, schedule=schedule).get_dataloader("train")
    names = [batch[1] for batch in loader]
    cycle = [name for name, times in schedule.items() for _ in range(times)]
    assert names == cycle * (len(names) // len(cycle)) and len(names) == len(loader)


def test_every_utterance_of_the_longest_task_is_seen_in_an_epoch(tmp_path: Path) -> None:
    e = expert(tmp_path)
    keys = {name: [] for name in e.tasks}
    for _, name, _, found, _ in e.get_dataloader("train"):
        keys[name] += found
    covered = {name: len(set(found)) / len(e.tasks[name].training_data().order(_rng())) for name, found in keys.items()}
    assert min(covered.values()) > 0.7  # less than one batch is left out


def _rng() -> Any:
    import numpy as np

    return np.random.default_rng(0)


def test_the_training_data_depend_on_seed_and_epoch_only(tmp_path: Path) -> None:
    e = expert(tmp_path)

    def batches(epoch: int, workers: int) -> list:
        e.settings.num_workers = workers
        loader = e.get_dataloader("train", epoch)
        return [(name, keys, [w.tobytes() for w in wavs]) for wavs, name, _, keys, _ in loader]

    assert batches(0, 0) == batches(0, 2) != batches(1, 0)
    e.seed = 2
    assert batches(0, 0) != batches(1, 0)


def test_two_processes_share_each_batch_without_overlap(tmp_path: Path) -> None:
    e = expert(tmp_path)
    data = {name: task.training_data() for name, task in e.tasks.items()}
    sizes, schedule = {"kws": 2, "sv": 2}, {"kws": 1, "sv": 1}
    parts = [AlternationLoader(data, sizes, schedule, 0, 0, rank=r, world=2) for r in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    places = [{place for plan in p.plans.values() for batch in plan for place in batch} for p in parts]
    for name in schedule:
        one, two = ({p for batch in part.plans[name] for p in batch} for part in parts)
        assert not one & two and places


def test_with_accumulation_all_batches_of_a_step_are_of_one_task(tmp_path: Path) -> None:
    names = [b[1] for b in expert(tmp_path, {"gradient_accumulate_steps": 2}).get_dataloader("train")]
    assert names[:4] == ["kws", "kws", "sv", "sv"] and len(names) % 4 == 0


def test_update_sum_gives_the_gradient_of_the_sum_of_the_losses(tmp_path: Path) -> None:
    e = expert(tmp_path, {"gradient_accumulate_steps": 2}, update="sum")
    batches = list(itertools.islice(train_batches(e), 2))
    assert [b[1] for b in batches] == ["kws", "sv"]
    shared = torch.ones(6, requires_grad=True)  # stands for the upstream, which both tasks train

    def losses() -> list[torch.Tensor]:
        return [e("train", [f * shared for f in b[0]], *b[1:], records=defaultdict(list)) for b in batches]

    for loss in losses():
        (loss / 2).backward()  # as the runner does
    got, shared.grad = shared.grad.clone(), None
    e.tasks["sv"].objective.step.fill_(0)
    e.settings.update = "alternate"
    sum(losses()).backward()
    torch.testing.assert_close(got, shared.grad, rtol=1e-4, atol=1e-6)


def test_update_sum_needs_as_many_accumulated_batches_as_a_cycle_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"my\.yaml: runner\.gradient_accumulate_steps: .* needs 2"):
        expert(tmp_path, update="sum")


def test_a_schedule_with_one_task_trains_this_task_only(tmp_path: Path) -> None:
    e = expert(tmp_path, schedule={"sv": 1})
    assert list(e.tasks) == ["sv"] and {b[1] for b in e.get_dataloader("train")} == {"sv"}
    run(e, "dev")
    assert e.score(e.results["dev"]) == -e.results["dev"]["sv"]["eer"]


def test_training_lowers_both_losses_and_evaluation_is_deterministic(tmp_path: Path) -> None:
    e = expert(tmp_path)
    optimizer, losses = torch.optim.Adam(e.parameters(), 3e-2), defaultdict(list)
    for epoch in range(8):
        for features, name, *others in train_batches(e.train(), epoch):
            loss = e("train", features, name, *others, records=defaultdict(list))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    for name, values in losses.items():
        assert sum(values[-3:]) < sum(values[:3]), name
    run(e, "test")
    first = e.results["test"]
    run(e, "test")
    assert e.results["test"] == first
    kws, sv = first["kws"], first["sv"]
    assert kws["labels"] == ["_silence_", "_unknown_", "yes", "no"]
    assert kws["utterances"] == 8 == sum(map(sum, kws["confusion"])) and kws["speakers"] == 2
    assert {"eer", "min_dcf_0.01", "min_dcf_0.05"} < set(sv)
    assert (sv["utterances"], sv["speakers"], sv["trials"]) == (4, 2, 6)
    json.dumps(first)


def test_the_batch_size_of_the_evaluation_does_not_change_its_results(tmp_path: Path) -> None:
    e = expert(tmp_path)
    run(e, "test")
    first = e.arrays["test"]["sv_scores"]
    for task in e.tasks.values():
        task.settings.eval_batch_size = 1
    run(e, "test")
    assert e.arrays["test"]["sv_scores"] == pytest.approx(first, abs=1e-6)


def test_only_development_data_choose_the_best_checkpoint_and_a_resumed_run_keeps_its_score(tmp_path: Path) -> None:
    e = expert(tmp_path)
    assert run(e, "test") == []
    assert run(e, "dev") == ["best-dev.ckpt"]
    assert run(e, "dev") == []  # an equal score is not better
    resumed = expert(tmp_path)
    resumed.load_state_dict(e.state_dict())
    assert run(resumed, "dev") == [] and resumed.best_score.item() == e.score(e.results["dev"])
    dev = e.results["dev"]
    assert e.score(dev) == pytest.approx(dev["kws"]["accuracy"] - dev["sv"]["eer"])
    lines = [json.loads(line) for line in (tmp_path / "exp/log.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["test", "dev", "dev", "dev"]


def test_the_log_holds_the_means_of_training_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    e, records = expert(tmp_path), defaultdict(list)
    for batch in list(train_batches(e))[:4]:
        e("train", *batch, records=records)
    e.log_records("train", records, Logger(), 4, batch_ids=[], total_batch_num=1)
    entry = json.loads((tmp_path / "exp/log.jsonl").read_text())
    assert {"kws/loss", "kws/accuracy", "sv/loss", "sv/accuracy"} < set(entry)
    assert entry["kws/loss"] == pytest.approx(torch.stack(records["kws/loss"]).mean().item())


def test_inference_prints_a_line_for_each_task(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    e = expert(tmp_path)
    wav = e.load_audio(next((tmp_path / "sc/test/yes").iterdir()))
    e.inference(frames([wav]), ["clip"])
    out = capsys.readouterr().out
    assert out.startswith("clip: kws: ") and "clip: sv: " in out


def test_an_unreadable_file_in_a_worker_gives_one_line_with_its_name(tmp_path: Path) -> None:
    e = expert(tmp_path, num_workers=1)
    bad = e.tasks["kws"].index[0]["training"][0].path
    for clip in e.tasks["kws"].index[0]["training"]:
        if clip.volume is None:
            clip.path.write_bytes(b"")
    with pytest.raises(UserError, match=r"\.wav: not readable as audio") as error:
        list(e.get_dataloader("train"))
    assert bad and "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    "change, match",
    [
        (
            {"tasks": {"kws": {"poling": "mean"}}},
            r"my\.yaml: downstream_expert\.tasks\.kws: poling: no such key; did you mean `pooling`\?",
        ),
        ({"tasks": {"kws": {"batch_size": "many"}}}, r"tasks\.kws: batch_size: expected a whole number, found 'many'"),
        ({"tasks": {"kws": {"pooling": "max"}}}, r"tasks\.kws: pooling: 'max' is not one of"),
        ({"tasks": {"sv": {"loss": {"name": "arc"}}}}, r"tasks\.sv: loss\.name: 'arc'"),
        ({"tasks": {"emotion": {}}}, r"tasks\.emotion: no task of this name"),
        ({"tasks": {"kws": {}, "emotion": {}}, "schedule": {"kws": 1}}, r"tasks\.emotion: no task of this name"),
        ({"tasks": {"kws": 3}}, r"tasks\.kws: expected a group of keys"),
        ({"seed": -1}, r"seed: needs 0 or more"),
        ({"score": {"kws": float("nan")}}, r"score\.kws: needs a finite number"),
        ({"score": {"kws": -1}}, r"score: needs weights of 0 or more"),
        ({"score": {"kws": 0}, "schedule": {"kws": 1}}, r"score: needs .* one above 0 in the schedule"),
        ({"schedule": {"asr": 1}}, r"downstream_expert: schedule\.asr: no such task"),
        ({"schedule": {"kws": 0}}, r"schedule: needs 1 or more"),
        ({"update": "both"}, r"update: 'both'"),
        ({"updat": "sum"}, r"downstream_expert: updat: no such key; did you mean `update`\?"),
        ({"tasks": {"upstream": {}}}, r"tasks\.upstream: is a key of results\.json"),
    ],
)
def test_a_wrong_setting_gives_one_line_with_file_and_key(tmp_path: Path, change: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        expert(tmp_path, **change)


@pytest.mark.parametrize("missing", ["kws", "sv", "header", "empty"])
def test_missing_evaluation_data_are_found_at_the_start_of_training(tmp_path: Path, missing: str) -> None:
    entries = tasks(tmp_path)
    bad = sorted((tmp_path / "vox/test/wav").rglob("*.wav"))[0]
    if missing == "kws":
        entries["kws"]["validation_percentage"] = 0
    elif missing == "sv":
        entries["sv"]["dev_speakers"] = 0
    elif missing == "header":
        bad.write_bytes(b"")
    else:
        soundfile.write(bad, [], 16_000)
    match = {
        "kws": r"kws\.validation_percentage: .* no speaker into dev",
        "sv": r"sv\.dev_speakers: 0 makes no trials for dev",
        "header": r"0\.wav: not readable as audio",
        "empty": r"0\.wav: holds no audio",
    }[missing]
    runner = {"gradient_accumulate_steps": 1, "eval_dataloaders": ["dev", "test"]}
    values = {"tasks": entries}
    DownstreamExpert(6, 160, values, str(tmp_path), runner=runner, mode="evaluate")
    with pytest.raises(UserError, match=match):
        DownstreamExpert(6, 160, values, str(tmp_path), runner=runner, mode="train")


def test_an_evaluation_batch_has_utterances_of_one_length_and_all_batches_together_have_each_once() -> None:
    class Data:
        lengths = (5, 3, 5, 5, 3, 9)

        def __len__(self) -> int:
            return 6

        def samples(self, index: int) -> int:
            return self.lengths[index]

    assert equal_length_batches(Data(), 2) == [[1, 4], [0, 2], [3], [5]]


def test_calibrate_replaces_the_batch_norm_statistics_by_those_of_the_given_features(tmp_path: Path) -> None:
    values = tasks(tmp_path)
    for name in values:
        values[name]["standardize"] = True
    e = expert(tmp_path, tasks=values, schedule={"kws": 1, "sv": 1})
    shifted = [f + 7 for wavs, task, *_ in train_batches(e) if task == "kws" for f in wavs]
    e.tasks["kws"](torch.nn.utils.rnn.pad_sequence(shifted, batch_first=True), torch.tensor([len(f) for f in shifted]))
    e.eval()
    e.calibrate(frames, cycles=1000)
    # the reference: the mean of the pooled features in each batch of the epoch, averaged over batches
    means = {"kws": [], "sv": []}
    for features, task, *_ in train_batches(e):
        means[task].append(torch.stack([f.mean(0) for f in features]).mean(0))
    for name, values in means.items():
        torch.testing.assert_close(e.tasks[name].head.standardize.running_mean, torch.stack(values).mean(0))
        norm = e.tasks[name].head.standardize
        assert not norm.training and norm.momentum == 0.1


def with_past(folder: Path, **of_task: Any) -> DownstreamExpert:
    """An expert whose training utterances all follow other speech."""
    values = tasks(folder)
    for name in values:
        speech = {"past": 1.0, "past_root": str(folder / "vox/dev"), "past_seconds": [0.2, 0.5]}
        values[name] |= {"augment": speech, **of_task}
    return expert(folder, tasks=values, schedule={"kws": 1, "sv": 1})


def test_the_upstream_gets_the_speech_before_an_utterance_and_the_head_does_not(tmp_path: Path) -> None:
    e = with_past(tmp_path)
    received: list[torch.Tensor] = []
    for task in e.tasks.values():
        task.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    for wavs, task, labels, keys, pasts in itertools.islice(e.get_dataloader("train"), 4):
        assert all(3_200 <= past <= 8_000 for past in pasts)
        e("train", frames(wavs), task, labels, keys, pasts, records=defaultdict(list))
        alone = frames([wav[past:] for wav, past in zip(wavs, pasts, strict=True)])
        torch.testing.assert_close(received[-1], torch.nn.utils.rnn.pad_sequence(alone, batch_first=True))


def test_evaluations_have_no_speech_before_utterances(tmp_path: Path) -> None:
    e = with_past(tmp_path)
    assert not any(past for *_, pasts in e.get_dataloader("dev") for past in pasts)


def test_calibrate_leaves_the_speech_before_utterances_out(tmp_path: Path) -> None:
    e = with_past(tmp_path, standardize=True).eval()
    e.calibrate(frames, cycles=1000)
    means: dict[str, list[torch.Tensor]] = {"kws": [], "sv": []}
    for wavs, task, _, _, pasts in e.get_dataloader("train"):
        alone = frames([wav[past:] for wav, past in zip(wavs, pasts, strict=True)])
        means[task].append(torch.stack([f.mean(0) for f in alone]).mean(0))
    for name, of_batches in means.items():
        torch.testing.assert_close(e.tasks[name].head.standardize.running_mean, torch.stack(of_batches).mean(0))


def test_calibrate_does_nothing_without_standardisation(tmp_path: Path) -> None:
    def unwanted(wavs: list) -> list[torch.Tensor]:
        raise AssertionError("no batch is needed")

    expert(tmp_path).calibrate(unwanted)


def test_a_task_uses_the_layer_that_its_settings_name(tmp_path: Path) -> None:
    values = tasks(tmp_path)
    values["sv"]["layer"] = 1
    e = expert(tmp_path, tasks=values, schedule={"kws": 1, "sv": 1}, layers=2)
    assert (e.tasks["kws"].head.linear.in_features, e.tasks["sv"].head.linear.in_features) == (6, 3)
    features, received = torch.randn(2, 5, 6), []
    e.tasks["sv"].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    e("dev", list(features), "sv", [0, 1], ["0", "1"], records=defaultdict(list))
    torch.testing.assert_close(received[0], features[:, :, 3:])


@pytest.mark.parametrize(
    ("layers", "layer", "message"),
    [
        (4, None, r"my\.yaml: downstream_expert\.layers: 6 features cannot be divided into 4 layers"),
        (2, 2, r"tasks\.sv\.layer: 2 is not one of layers: 2"),
        (0, None, r"layers: needs 1 or more"),
    ],
)
def test_a_missing_layer_gives_one_line_with_the_key(
    tmp_path: Path, layers: int, layer: int | None, message: str
) -> None:
    values = tasks(tmp_path)
    values["sv"]["layer"] = layer
    with pytest.raises(UserError, match=message):
        expert(tmp_path, tasks=values, layers=layers)
