"""The preset of SUPERB's two tasks in one run: its settings, its index, and training by the real commands on tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trees import speech_commands, voxceleb, write_tone

from distilled_student import StudentConfig, build_student, save_student
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.corpora import keywords
from distilled_student.corpora.keywords import KEYWORDS
from distilled_student.host import launch
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.heads import ProjectionHead, XVectorHead
from distilled_student.multitask.settings import ExpertSettings
from distilled_student.multitask.tasks import kws, sv
from distilled_student.multitask.tasks.base import square_root_order
from distilled_student.patches.torchaudio_names import apply_effects_file

PATH = find_config("superb", kind="multitask")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("superb")
    speech_commands(folder / "sc", speakers=20)
    voxceleb(folder / "vox")
    return folder


def train(data: Path, exp: Path, *more: str, upstream: tuple[str, ...] = ("-u", "fbank")) -> int:
    expert = "config.downstream_expert"
    pairs = [f"config.runner.{k}" for k in ("total_steps=6", "log_step=2", "eval_step=6", "save_step=6")]
    pairs += [f"{expert}.num_workers=0", f"{expert}.tasks.kws.keywords=['yes','no']"]
    pairs += [f"{expert}.tasks.kws.{name}_root={data / 'sc' / name}" for name in ("train", "test")]
    pairs += [f"{expert}.tasks.kws.batch_size=6", f"{expert}.tasks.sv.batch_size=4"]
    pairs += [f"{expert}.tasks.sv.{k}" for k in (f"root={data / 'vox'}", "dev_speakers=2", "dev_trials=20")]
    command = ["-m", "train", *upstream, "-d", "multitask", "-c", "superb", "-p", str(exp), "--device", "cpu"]
    return launch.main([*command, "-o", ",,".join([*pairs, *more])])


def test_the_preset_has_superbs_settings_where_one_run_can() -> None:
    config = read_yaml(PATH)
    expert = typed(ExpertSettings, config["downstream_expert"], PATH)
    words, voices = typed(kws.Settings, expert.tasks["kws"], PATH), typed(sv.Settings, expert.tasks["sv"], PATH)
    assert (config["runner"]["total_steps"], config["optimizer"]["lr"], expert.gain_db) == (2 * 200_000, 1e-4, -3)
    assert (words.batch_size, words.head, words.layer, words.sampling) == (32, "projection", "weighted", "class")
    assert words.keywords == KEYWORDS and words.unknown_percentage is words.silence_percentage is None
    assert (voices.batch_size, voices.head, voices.layer) == (5 * 10, "xvector", "weighted")
    assert (voices.loss.name, voices.loss.margin, voices.loss.scale) == ("am", 0.4, 30)
    assert voices.crop_seconds * 16_000 == 128_000 and not voices.fill


def test_the_real_commands_train_both_heads_and_no_upstream(
    data: Path, tmp_path: Path, small_cnn: StudentConfig
) -> None:
    torch.manual_seed(0)
    save_student(build_student(small_cnn), tmp_path / "student")
    upstream = ("-u", "distilled_student", "-k", str(tmp_path / "student"), "-s", "concatenated")
    assert train(data, tmp_path / "exp", "config.downstream_expert.layers=3", upstream=upstream) == 0
    state = torch.load(tmp_path / "exp/states-6.ckpt", weights_only=True)
    downstream = state["Downstream"]
    trained = [name for name in downstream if not name.endswith(("step", "calibration", "best_score", "_extra_state"))]
    assert "Upstream" not in state and not state["Featurizer"]
    assert len(state["Optimizer"]["param_groups"][0]["params"]) == len(trained), "no parameter of the upstream is in it"
    assert downstream["tasks.kws.head.projector.weight"].shape == (256, 16)
    assert downstream["tasks.sv.head.convolutions.4.weight"].shape == (1500, 512, 1)
    weights = [downstream[f"choices.{name}.weights"] for name in ("kws", "sv")]
    assert all(w.shape == (3,) and w.abs().max() > 0 for w in weights) and not weights[0].equal(weights[1])
    results = evaluate(tmp_path / "exp", device="cpu")
    assert results["kws"]["utterances"] == 8 and results["sv"]["trials"] == 6
    assert "as_norm" not in results["sv"], "x-vectors are not the features that the loss's weights belong to"
    assert results["sv"]["cohort"] == 0


def test_with_its_own_layer_weights_a_task_learns_the_same_in_joint_and_single_task_training(
    data: Path, tmp_path: Path, small_cnn: StudentConfig
) -> None:
    save_student(build_student(small_cnn), tmp_path / "student")
    upstream = ("-u", "distilled_student", "-k", str(tmp_path / "student"), "-s", "concatenated")
    more = [f"config.downstream_expert.{k}" for k in ("layers=3", "tasks.sv.embedding_size=8")]
    more += ["config.runner.eval_dataloaders=[]"]
    assert train(data, tmp_path / "both", *more, upstream=upstream) == 0
    alone = ("config.runner.total_steps=3", "config.downstream_expert.schedule={'kws': 1}")
    assert train(data, tmp_path / "alone", *more, *alone, upstream=upstream) == 0
    both = torch.load(tmp_path / "both/states-6.ckpt", weights_only=True)["Downstream"]
    alone = torch.load(tmp_path / "alone/states-3.ckpt", weights_only=True)["Downstream"]
    names = [name for name in alone if name.startswith(("tasks.kws", "choices.kws"))]
    assert len(names) == 5 and all(both[name].equal(alone[name]) for name in names)


def test_the_preset_works_with_any_upstream_and_one_weighted_sum(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path) == 0
    downstream = torch.load(tmp_path / "states-6.ckpt", weights_only=True)["Downstream"]
    assert downstream["tasks.sv.head.connector.weight"].shape[0] == 512


def test_weighted_layers_without_their_number_give_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train(data, tmp_path, upstream=("-u", "distilled_student", "-s", "concatenated")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "superb.yaml with -o: downstream_expert.layers: kws.layer: weighted needs the number of layers" in error


@pytest.mark.parametrize(
    "task, change, match",
    [
        (kws, {"head": "xvector"}, r"FILE: head: 'xvector' is a head of other tasks; choose from linear, projection"),
        (sv, {"head": "tdnn"}, r"FILE: head: 'tdnn' is not a head; choose from linear, projection, xvector"),
        (
            kws,
            {"head": "projection", "standardize": True},
            "FILE: standardize: works with the heads linear and pooled only",
        ),
        (sv, {"layer": "last"}, r"FILE: layer: 'last' is neither a number nor weighted"),
        (kws, {"sampling": "word"}, r"FILE: sampling: 'word' is not utterance, class or square_root"),
        (kws, {"fill": "maybe"}, r"FILE: fill: expected true or false, found 'maybe'"),
    ],
)
def test_a_wrong_choice_gives_one_line_with_file_and_key(task: object, change: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        typed(task.Settings, change, "FILE")


def keyword_task(data: Path, **more: object) -> kws.Task:
    settings = {"train_root": str(data / "sc/train"), "test_root": None, "keywords": ["yes", "no"], **more}
    return kws.Task(typed(kws.Settings, settings, "FILE"), 4, 0, "F")


def test_superbs_index_has_every_other_word_and_each_noise_file_once(data: Path) -> None:
    task = keyword_task(data, silence_percentage=None, unknown_percentage=None)
    for clips in task.index[0].values():
        speakers = {keywords.speaker_of(clip.path.name) for clip in clips if clip.volume is None}
        labels = [clip.label for clip in clips]
        assert labels.count(1) == 2 * len(speakers) and labels.count(0) == 2
        assert {clip.path.stem for clip in clips if clip.volume is not None} == {"noise0", "noise1"}


def test_with_sampling_by_class_all_classes_count_equally_in_training_and_in_the_score(data: Path) -> None:
    task = keyword_task(data, silence_percentage=None, unknown_percentage=None, sampling="class")
    training = task.training_data()
    order = training.order(np.random.default_rng(0))
    labels = np.array([clip.label for clip in training.clips])
    assert len(order) == len(labels) and np.ptp(np.bincount(labels[order])) <= 1
    assert np.ptp(np.bincount(labels)) > 1, "otherwise there is nothing to balance"
    assert order != training.order(np.random.default_rng(1))
    results, _ = task.metrics("dev", [(1, 1, "a/x_nohash_0"), (1, 1, "a/y_nohash_0"), (2, 3, "b/x_nohash_0")])
    assert (results["accuracy"], task.score(results)) == (pytest.approx(200 / 3), 50)


def test_with_sampling_by_square_root_a_class_with_four_times_as_many_clips_is_drawn_twice_as_often(data: Path) -> None:
    labels = np.repeat([0, 1, 2], [400, 100, 25])
    order = square_root_order(labels, np.random.default_rng(0))
    counts = np.bincount(labels[order])
    assert counts.tolist() == [300, 150, 75] and len(set(order)) == 300 + 100 + 25
    assert sorted(np.bincount(order)[400:500]) == [1] * 50 + [2] * 50
    training = keyword_task(
        data, silence_percentage=None, unknown_percentage=None, sampling="square_root"
    ).training_data()
    drawn = training.order(np.random.default_rng(0))
    assert set(drawn) <= set(range(len(training.clips))) and drawn != training.order(np.random.default_rng(1))


def test_gain_lowers_every_waveform_as_in_s3prls_experts(data: Path) -> None:
    def expert(gain: float) -> DownstreamExpert:
        words = {"train_root": str(data / "sc/train"), "test_root": str(data / "sc/test"), "keywords": ["yes", "no"]}
        values = {"tasks": {"kws": words}, "gain_db": gain}
        return DownstreamExpert(4, 160, values, "unused", runner={}, seed=0)

    plain, lower, file = expert(0.0), expert(-3.0), data / "sc/test/yes/new0_nohash_0.wav"
    wanted, _ = apply_effects_file(str(file), [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]])
    torch.testing.assert_close(lower.load_audio(file), wanted[0])
    for split in ("train", "dev", "test"):
        (wavs, *_), (lower_wavs, *_) = (next(iter(e.get_dataloader(split))) for e in (plain, lower))
        for wav, lower_wav in zip(wavs, lower_wavs, strict=True):
            np.testing.assert_allclose(lower_wav, 10**-0.15 * wav, rtol=1e-6)


def test_without_fill_short_clips_stay_short_and_long_ones_are_cut(tmp_path: Path) -> None:
    root, vox = speech_commands(tmp_path / "sc", test=False), voxceleb(tmp_path / "vox")
    write_tone(root / "train/yes/spk3_nohash_8.wav", 300, 0.5)
    write_tone(root / "train/yes/spk3_nohash_9.wav", 300, 2.5)
    task = keyword_task(tmp_path, fill=False, validation_percentage=0, testing_percentage=0)
    data = task.training_data()
    lengths = {c.key: len(data.item(i, np.random.default_rng(0)).waveform) for i, c in enumerate(data.clips)}
    assert lengths["yes/spk3_nohash_8.wav"] == 8_000 and lengths["yes/spk3_nohash_9.wav"] == 16_000
    settings = sv.Settings(root=str(vox), dev_speakers=2, dev_trials=8, crop_seconds=0.6, fill=False)
    data = sv.Task(settings, 4, 0, "F").training_data()
    lengths = [len(data.item(i, np.random.default_rng(0)).waveform) for i in range(len(data.items))]
    assert set(lengths) == {8_000, 9_600}, "whole utterances of 0.5 s, and crops of 0.6 s from those of 0.75 s"


def test_the_heads_of_the_preset_have_superbs_sizes() -> None:
    count = [sum(p.numel() for p in head.parameters()) for head in (ProjectionHead(768, 12), XVectorHead(768, 512))]
    assert count == [
        768 * 256 + 256 + 256 * 12 + 12,
        768 * 512
        + 512
        + 512 * 512 * (5 + 3 + 3 + 1)
        + 4 * 512
        + 512 * 1500
        + 1500
        + 3000 * 512
        + 512
        + 512 * 512
        + 512,
    ]
