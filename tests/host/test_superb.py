"""SUPERB with s3prl's own experts: keyword spotting and speaker verification end to end on a small corpus."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from helpers import trees
from sklearn.metrics import roc_curve
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

import distilled_student as ds
from distilled_student import StudentConfig
from distilled_student.host import launch
from distilled_student.host.plugin import register
from distilled_student.host.superb.settings import KeywordData
from distilled_student.patches import torchaudio_names

TRIALS = 60
DATA = "config.downstream_expert.datarc"
MODEL = "config.downstream_expert.modelrc"
SHORT = f"config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=1,,{DATA}.num_workers=0"
KS = ["-d", "speech_commands"]
ASV = ["-d", "sv_voxceleb1"]
VAD = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]


@pytest.fixture(scope="module")
def tree(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``data`` where the configs expect it, and a short list of trials."""
    folder = tmp_path_factory.mktemp("superb")
    (folder / "data/voxceleb1").mkdir(parents=True)
    os.symlink(small_corpus / "speech_commands", folder / "data/speech_commands")
    for part in ("dev", "test"):
        os.symlink(small_corpus / "voxceleb1" / part, folder / "data/voxceleb1" / part)
    lines = (small_corpus / "voxceleb1/veri_test.txt").read_text().splitlines()
    files = sorted({name for line in lines for name in line.split()[1:]})[::4]
    kept = [line for line in lines if set(line.split()[1:]) <= set(files)]
    (folder / "data/voxceleb1/veri_test.txt").write_text("\n".join(kept[:TRIALS]) + "\n")
    return folder


@pytest.fixture(scope="module", params=["fbank", "distilled_student", "hf_hubert_custom"])
def upstream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that name an upstream; except for fbank, it is small and has random weights."""
    folder, name = tmp_path_factory.mktemp("upstream"), request.param
    torch.manual_seed(0)
    sizes = {"conv_dim": [8] * 7, "hidden_size": 16}
    if name == "distilled_student":
        own = {"layers": 2, "heads": 2, "feed_forward": 32, "position_kernel": 8, "position_groups": 2}
        ds.save_student(ds.build_student(StudentConfig(**sizes, **own, targets=[1, 2], target_size=16)), folder)
    elif name == "hf_hubert_custom":
        own = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        position = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
        HubertModel(HubertConfig(**sizes, **own, **position)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return ["-u", name] if name == "fbank" else ["-u", name, "-k", str(folder)]


@pytest.fixture(autouse=True)
def output(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what a test writes. The working folder is ``tree``."""
    monkeypatch.chdir(tree)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "cache"))
    return tmp_path


def train_resume_evaluate(task: list[str], upstream: list[str], folder: Path, options: str) -> None:
    """Three commands: train two steps, resume for a third one, evaluate its checkpoint."""
    options = f"{SHORT},,config.runner.gradient_accumulate_steps=1,,{options}"
    start = ["-m", "train", *upstream, *task, "-p", str(folder), "--device", "cpu", "-o"]
    assert launch.main([*start, f"{options},,config.runner.total_steps=2"]) == 0
    assert launch.main(["-m", "train", "-e", str(folder), "-o", "config.runner.total_steps=3", "--device", "cpu"]) == 0
    state = torch.load(folder / "states-3.ckpt", weights_only=True)
    assert state["Step"] == 3 and all(entry["step"] == 3 for entry in state["Optimizer"]["state"].values())
    assert launch.main(["-m", "evaluate", "-e", str(folder / "states-3.ckpt"), "-t", "test", "--device", "cpu"]) == 0


def test_keyword_spotting_trains_resumes_and_logs_the_accuracy_of_its_predictions(
    upstream: list[str], output: Path
) -> None:
    options = f"{DATA}.batch_size=8,,config.runner.eval_dataloaders=['dev'],,config.optimizer.lr=0.01"
    train_resume_evaluate(KS, upstream, output / "ks", options)
    lines = [line.split(" ") for line in (output / "ks/test_predict.txt").read_text().splitlines()]
    files = {
        f"{path.parts[-2]}-{path.name}": path.parts[-2] for path in Path("data/speech_commands/test").rglob("*.wav")
    }
    assert {name for name, _ in lines} == files.keys() and len(lines) == len(files)
    accuracy = np.mean([files[name] == word for name, word in lines])
    log = (output / "ks/log.log").read_text()
    assert float(re.findall(r"^test at step 0: (.*)$", log, re.MULTILINE)[-1]) == pytest.approx(accuracy)
    assert "New best on dev at step 2" in log and (output / "ks/dev-best.ckpt").is_file()


def test_speaker_verification_trains_resumes_and_prints_the_eer_of_its_scores(
    upstream: list[str], output: Path, capsys: pytest.CaptureFixture
) -> None:
    train_resume_evaluate(ASV, upstream, output / "asv", f"{DATA}.vad_config.min_sec=8000,,{DATA}.train_batch_size=4")
    rows = [line.split(" ") for line in (output / "asv/test_predict.txt").read_text().splitlines()]
    trials = [line.split() for line in Path("data/voxceleb1/veri_test.txt").read_text().splitlines()]
    pair_names = ["_".join(name.replace("/", "-").removesuffix(".wav") for name in trial[1:]) for trial in trials]
    assert [name for name, _ in rows] == pair_names
    assert (output / "asv/test_truth.txt").read_text().splitlines() == [
        f"{name} {trial[0]}" for name, trial in zip(pair_names, trials, strict=True)
    ]
    labels, scores = np.array([int(trial[0]) for trial in trials]), np.array([float(score) for _, score in rows])
    false_positive_rates, true_positive_rates, _ = roc_curve(labels, scores)
    grid = np.linspace(0, 1, 200_001)
    miss_rates = 1 - np.interp(grid, false_positive_rates, true_positive_rates)
    eer = grid[np.argmin(np.abs(miss_rates - grid))]
    printed = float(re.findall(r"test-EER: (\S+)", capsys.readouterr().out)[-1])
    assert printed == pytest.approx(eer, abs=1e-5)

    runner = launch.open_runner(output / "asv/states-3.ckpt", "cpu")
    expert = runner.downstream.model.eval()
    runner.upstream.model.eval(), runner.featurizer.model.eval()
    embeddings = []
    with torch.no_grad():
        for name in trials[0][1:]:
            effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"], VAD]
            wave = torchaudio_names.apply_effects_file(f"data/voxceleb1/test/wav/{name}", effects)[0][0]
            (features,) = runner.featurizer.model([wave], runner.upstream.model([wave]))
            frames = expert.model.framelevel_feature_extractor(expert.connector(features)[None], None)[0]
            pooled = torch.cat([frames.mean(dim=0), frames.std(dim=0)])
            embeddings.append(torch.relu(expert.model.utterancelevel_feature_extractor.linear1(pooled)))
    assert scores[0] == pytest.approx(float(torch.cosine_similarity(*embeddings, dim=0)), abs=1e-5)


def test_the_dev_split_is_scored_on_its_own_list_of_trials(tree: Path, output: Path) -> None:
    files = sorted(path.relative_to("data/voxceleb1/dev/wav") for path in Path("data/voxceleb1/dev/wav").rglob("*.wav"))
    pairs = [(1, files[0], files[1]), (0, files[0], files[-1]), (0, files[1], files[-2]), (1, files[-1], files[-2])]
    (output / "dev.txt").write_text("".join(f"{label} {a} {b}\n" for label, a, b in pairs))
    options = f"{SHORT},,{DATA}.dev_meta_data={output / 'dev.txt'},,config.runner.eval_dataloaders=['dev']"
    options += (
        f",,{DATA}.vad_config.min_sec=8000,,config.runner.total_steps=2,,config.runner.gradient_accumulate_steps=1"
    )
    start = ["-m", "train", "-u", "fbank", *ASV, "-p", str(output / "asv"), "--device", "cpu", "-o", options]
    assert launch.main(start) == 0
    lines = (output / "asv/dev_truth.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == [str(label) for label, _, _ in pairs]
    assert (output / "asv/dev-best.ckpt").is_file()


def test_lengths_are_cached_for_each_data_set_and_outside_the_installed_package(output: Path) -> None:
    register()
    dataset = importlib.import_module("s3prl.downstream.sv_voxceleb1.dataset")
    for name, seconds in (("a", 0.5), ("b", 1.0)):
        for speaker in ("id10001", "id10002"):
            (output / name / speaker / "s").mkdir(parents=True)
            soundfile.write(output / name / speaker / "s/00000.wav", tone(seconds).numpy(), 16_000)

    def files(name: str) -> int:
        return len(dataset.SpeakerVerifi_train({"min_sec": 12_000}, ["Voxceleb1"], [output / name], None))

    assert (files("a"), files("b"), files("a"), files("b")) == (0, 2, 0, 2)
    soundfile.write(output / "a/id10001/s/00000.wav", tone(1.0).numpy(), 16_000)
    assert files("a") == 1, "the length of a changed file is read again"
    assert not (Path(dataset.__file__).parent / ".wav_lengths").exists()


def test_background_noise_shorter_than_a_second_is_used_whole(output: Path) -> None:
    register()
    dataset = importlib.import_module("s3prl.downstream.speech_commands.dataset")
    (output / "_background_noise_").mkdir()
    soundfile.write(output / "_background_noise_/hum.wav", tone(0.5).numpy(), 16_000)
    wave, label, _ = dataset.SpeechCommandsDataset([], speech_commands_root=output)[0]
    assert (len(wave), label) == (8000, dataset.CLASSES.index("_silence_"))


# KEPT: the samples of `levels()` that sox 14.4.2 keeps, in.wav being float32, with the command
# sox -D in.wav -b 32 -e float out.wav silence 1 0.1 0.1% -1 0.1 0.1%
# No two samples have the same value, so a kept segment was located by its values.
LEVELS = [(0.2, 0.0005), (0.15, 0.2), (0.05, 0.0005), (0.3, 0.02), (0.25, 0.0), (0.06, 0.5), (0.3, 0.0), (0.4, 0.01)]
KEPT = [(3_200, 11_519), (20_964, 27_360)]


def levels() -> np.ndarray:
    """Segments of (seconds, level), without random numbers: every version of NumPy makes the same samples."""
    parts = []
    for i, (seconds, level) in enumerate(LEVELS):
        n = np.arange(round(seconds * 16_000)) + 16_000 * i
        parts.append(level * np.sin(n * n * 0.001) * (1 + n * 1e-6))
    return np.concatenate(parts).astype(np.float32)


def test_the_same_silence_is_removed_as_sox_removed_from_a_stored_example() -> None:
    wave = levels()
    out, _ = torchaudio_names.apply_effects_tensor(torch.from_numpy(wave)[None], 16_000, [VAD])
    assert np.array_equal(out[0].numpy(), np.concatenate([wave[start:end] for start, end in KEPT]))


@pytest.mark.skipif(shutil.which("sox") is None, reason="needs the program sox")
def test_the_same_silence_is_removed_as_the_installed_sox_removes(output: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        segments = [10 ** rng.uniform(-5, -0.3) * rng.standard_normal(rng.integers(1, 6400)) for _ in range(15)]
        soundfile.write(
            output / "in.wav", np.clip(np.concatenate(segments), -1, 1), 16_000, "FLOAT" if i % 2 else "PCM_16"
        )
        effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"], VAD]
        command = ["sox", "-D", "in.wav", "-b", "32", "-e", "float", "out.wav", *(word for e in effects for word in e)]
        subprocess.run(command, cwd=output, check=True, capture_output=True)
        expected, _ = soundfile.read(output / "out.wav", dtype="float32")
        found = torchaudio_names.apply_effects_file(output / "in.wav", effects)[0][0].numpy()
        assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*KS, "-o", f"{DATA}.speech_commands_root=gone"], "ks.yaml with -o: downstream_expert: datarc.speech_"),
        ([*KS, "-o", f"{DATA}.speech_commands_root=gone"], "speech_commands_root: gone: no such folder"),
        ([*KS, "-o", f"{DATA}.speech_commands_root=data/voxceleb1"], "no _background_noise_/*.wav"),
        ([*KS, "-o", f"{DATA}.speech_commands_test_root=data/voxceleb1/test"], "wav is not one of the twelve classes"),
        ([*KS, "-o", f"{DATA}.batch_size=0"], "datarc.batch_size: expected a whole number from 1, found 0"),
        ([*KS, "-o", f"{DATA}.batch_size=100000"], "less data to train with than makes one batch"),
        (
            [*KS, "-o", f"{DATA}.batchsize=3"],
            "downstream_expert: datarc.batchsize: no such key; did you mean `datarc.batch_size`?",
        ),
        ([*KS, "-o", f"{MODEL}={{}}"], "downstream_expert: modelrc.projector_dim: missing"),
        ([*KS, "-o", f"{MODEL}.select=print"], "modelrc.select: expected UtteranceLevel, found 'print'"),
        ([*KS, "-o", f"{MODEL}.UtteranceLevel.pooling=MaxPooling"], "s3prl has no pooling 'MaxPooling'"),
        ([*KS, "-o", f"{MODEL}.UtteranceLevel.pooling=exit()"], "pooling: expected a name, found 'exit()'"),
        ([*KS, "-o", "config.runner.eval_dataloaders=['valid']"], "'valid' is not train or dev or test"),
        (["-m", "evaluate", *KS], "-m evaluate: needs a trained checkpoint"),
        (["-m", "evaluate", *KS, "-t", "valid"], "-t valid: expected train or dev or test"),
        ([*ASV, "-o", f"{DATA}.file_path=gone"], "asv.yaml with -o: downstream_expert: datarc.file_path: gone: no"),
        ([*ASV, "-o", f"{DATA}.test_meta_data=gone.txt"], "datarc.test_meta_data: gone.txt: no such file"),
        ([*ASV, "-o", f"{DATA}.dev_meta_data=data/voxceleb1/veri_test.txt"], "veri_test.txt: line 1: no file"),
        ([*ASV, "-o", "config.runner.eval_dataloaders=['dev']"], "datarc.dev_meta_data: no list of trials"),
        ([*ASV, "-o", f"{DATA}.vad_config.min_sec=1000000000"], "no data to train with"),
        ([*ASV, "-o", f"{MODEL}.module=open"], "modelrc.module: expected one of XVector, Identity, found 'open'"),
        ([*ASV, "-o", f"{MODEL}.module=Identity"], "modelrc.module_config.Identity: missing"),
        ([*ASV, "-o", f"{MODEL}.ObjectiveLoss=ArcFace"], "expected one of AMSoftmaxLoss"),
    ],
)
def test_a_mistake_in_superbs_settings_is_reported_in_one_line_and_creates_no_folder(
    arguments: list[str], message: str, output: Path, capsys: pytest.CaptureFixture
) -> None:
    start = ["-m", "train"] if "-m" not in arguments else []
    assert launch.main([*start, "-u", "fbank", "-p", str(output / "new"), "--device", "cpu", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (output / "new").exists()


def test_system_folders_in_speech_commands_are_ignored_or_refused(tmp_path: Path) -> None:
    """s3prl trains every folder of .wav files as a word."""
    trees.speech_commands(tmp_path)
    shutil.rmtree(tmp_path / "test" / "_unknown_")
    folders = [str(tmp_path / "train"), str(tmp_path / "test")]
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "@eaDir" / "a.wav").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"speech_commands_root: .*@eaDir: is no word, but has \.wav files: remove it"):
        KeywordData(*folders, 0, 4)
    shutil.rmtree(tmp_path / "train" / "@eaDir")
    KeywordData(*folders, 0, 4)
    trees.write_tone(tmp_path / "test" / "__MACOSX" / "a.wav", 200)
    with pytest.raises(ValueError, match="__MACOSX is not one of the twelve classes"):
        KeywordData(*folders, 0, 4)
