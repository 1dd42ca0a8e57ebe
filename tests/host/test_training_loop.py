"""Our training loop makes the same updates, checkpoints and log entries as s3prl's, bit for bit on a CPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from distilled_student import register
from distilled_student.host import launch

# Runs s3prl as it is installed. Its import needs names that torchaudio and huggingface_hub removed. The import of its
# speech_commands expert needs catalyst, of which it uses one class, in distributed training only.
REFERENCE = """
import sys, types
from distilled_student.patches import huggingface_names, torchaudio_names
torchaudio_names.add_missing_names()
huggingface_names.add_missing_names()
sampler = types.ModuleType("catalyst.data.sampler")
sampler.DistributedSamplerWrapper = None
sys.modules |= {"catalyst": types.ModuleType("catalyst"), "catalyst.data": types.ModuleType("catalyst.data")}
sys.modules["catalyst.data.sampler"] = sampler
from s3prl import run_downstream
from s3prl.downstream import runner
from s3prl.downstream.example import dataset
vars(dataset).update(EXAMPLE_DATA)
assert run_downstream.Runner is runner.Runner and runner.Runner.__module__ == "s3prl.downstream.runner"
for line in sys.stdin:
    sys.argv = ["run_downstream.py", *line.rstrip("\\n").split("\\t")]
    run_downstream.main()
"""
CASES = [("example", 1), ("speech_commands", 3), ("example, upstream trained", 3)]  # downstream, batches in a step
STEPS, SAVE_STEP = 30, 10
# the random utterances of the example downstream: few and short, so that there are several epochs in little time
EXAMPLE_DATA = {"EXAMPLE_DATASET_SIZE": 20, "EXAMPLE_WAV_MIN_SEC": 1, "EXAMPLE_WAV_MAX_SEC": 3}


def settings(accumulate: int, downstream_expert: dict[str, Any], features: int) -> dict[str, Any]:
    """Settings with clipping at every step, a scheduler, SpecAugment, several epochs, evaluations and checkpoints."""
    return {
        "runner": {
            "total_steps": STEPS,
            "gradient_clipping": 0.05,
            "gradient_accumulate_steps": accumulate,
            "log_step": 4,
            "eval_step": 15,
            "save_step": SAVE_STEP,
            "max_keep": 2,
            "eval_dataloaders": ["dev"],
            "evaluate_ratio": 0.5,
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3},
        "scheduler": {"name": "linear_schedule_with_warmup", "num_warmup_steps": 5},
        "specaug": {"freq_mask_width_range": [0, features // 4], "time_mask_width_range": [0, 10]},
        "downstream_expert": downstream_expert,
    }


def example(_: Path) -> dict[str, Any]:
    return {"datarc": {"num_workers": 0, "train_batch_size": 1, "eval_batch_size": 1}, "modelrc": {"input_dim": 8}}


def speech_commands(corpus: Path) -> dict[str, Any]:
    folder = corpus / "speech_commands"
    roots = {"speech_commands_root": str(folder / "train"), "speech_commands_test_root": str(folder / "test")}
    model = {"projector_dim": 8, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
    return {"datarc": {**roots, "num_workers": 0, "batch_size": 4}, "modelrc": model}


def hubert(folder: Path) -> list[str]:
    """Save a small HuBERT with dropout; returns the arguments that train it with the task."""
    torch.manual_seed(0)
    position = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    HubertModel(HubertConfig(conv_dim=[8] * 7, layerdrop=0.0, **layers, **position)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return ["-u", "hf_hubert_custom", "-k", str(folder), "-f"]


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of all scalars in the folder's TensorBoard files."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    """Compare two checkpoints exactly; ``where`` is the key in the message."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_equal(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    else:
        assert ours == theirs, where


def folder_of(root: Path, case: str, accumulate: int) -> Path:
    return root / f"{case.replace(', ', '-').replace(' ', '-')}-{accumulate}"


@pytest.fixture(scope="module")
def commands(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[str]]:
    """The arguments of each case. s3prl's own loop has run every case; its output is in the folder ``theirs``."""
    root, found = tmp_path_factory.mktemp("loop"), {}
    for case, accumulate in CASES:
        folder, downstream, is_trained = folder_of(root, case, accumulate), case.partition(",")[0], "trained" in case
        folder.mkdir()
        expert = {"example": example, "speech_commands": speech_commands}[downstream](small_corpus)
        upstream = hubert(folder / "hubert") if is_trained else ["-u", "fbank"]
        config = settings(accumulate, expert, features=16 if is_trained else 80)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        options = ["-c", str(folder / "config.yaml"), "--device", "cpu"]
        found[case, accumulate] = ["-m", "train", *upstream, "-d", downstream, *options, "-p", str(folder / "theirs")]
    lines = "\n".join("\t".join(command) for command in found.values())
    program = REFERENCE.replace("EXAMPLE_DATA", repr(EXAMPLE_DATA))
    done = subprocess.run([sys.executable, "-c", program], input=lines, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.mark.parametrize(("case", "accumulate"), CASES)
def test_thirty_steps_equal_those_of_s3prls_own_loop(
    case: str, accumulate: int, commands: dict[tuple[str, int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    for name, value in EXAMPLE_DATA.items():
        monkeypatch.setattr(f"s3prl.downstream.example.dataset.{name}", value)
    *command, theirs = commands[case, accumulate]
    folders = {"ours": Path(theirs).with_name("ours"), "theirs": Path(theirs)}
    assert launch.main([*command, str(folders["ours"])]) == 0

    names = {who: sorted(path.name for path in folder.glob("*.ckpt")) for who, folder in folders.items()}
    assert names["ours"] == names["theirs"] and {"states-20.ckpt", "states-30.ckpt"} <= set(names["ours"])
    for name in names["ours"]:
        ours, theirs = (torch.load(folders[who] / name, weights_only=True) for who in ("ours", "theirs"))
        for state in (ours, theirs):
            del state["Args"], state["Config"]
        assert_equal(ours, theirs, name)
    assert logged(folders["ours"]) == logged(folders["theirs"]) != {}


@pytest.mark.parametrize("fp16", [False, True])
def test_the_upstream_computes_in_half_precision_with_fp16_alone(fp16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilled_student.host.runner import Runner

    entered: list[bool] = []

    @contextlib.contextmanager
    def autocast(device: str, dtype: object = None, *, enabled: bool = True) -> Iterator[None]:
        entered.append(enabled)
        yield
        entered.pop()

    seen: list[bool] = []

    def upstream(wavs: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(entered[-1])  # the innermost decides
        return wavs

    monkeypatch.setattr(torch, "autocast", autocast)
    runner = Runner.__new__(Runner)
    runner.args, runner.config = Namespace(device="cpu"), {"runner": {"fp16": fp16}}
    runner.upstream = Namespace(model=upstream, trainable=True)
    runner.featurizer = Namespace(model=lambda wavs, features: features)
    runner.downstream = Namespace(model=lambda split, features, *others, records: features[0].sum())
    assert float(runner._loss([[1.0, 2.0]], [], {}, None)) == 3.0
    assert seen == [fp16]
