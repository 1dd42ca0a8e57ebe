"""Which of SUPERB's tasks run here with s3prl's own experts; writes and checks the last section of ``docs/superb.md``.

To write it again: ``PYTHONPATH=tests python tests/host/test_superb_tasks.py``
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import tone
from packaging.requirements import Requirement

from distilled_student.common.settings import find_config, read_yaml
from distilled_student.host import launch
from distilled_student.host.plugin import register
from distilled_student.host.superb import settings as superb

PAGE = Path(__file__).parents[2] / "docs/superb.md"
SETUP = Path(__file__).parents[2] / "setup.py"
DOWNSTREAMS = "s3prl.downstream"


def _wave(path: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, seed=seed).numpy(), 16_000)
    return path


def _keywords(data: Path) -> None:
    for speaker in range(12):
        for word in ("yes", "bed"):
            _wave(data / f"speech_commands/train/{word}/spk{speaker}_nohash_0.wav", seed=speaker)
    _wave(data / "speech_commands/train/_background_noise_/noise.wav", 2.0)
    _wave(data / "speech_commands/test/yes/spk_nohash_0.wav")


def _speakers(data: Path) -> None:
    lists: dict[str, list[str]] = {"veri_test.txt": [], "iden_split.txt": []}
    for part, first in (("dev", 10_001), ("test", 10_005)):
        for speaker in (first, first + 1):
            for take in range(3):
                name = f"id{speaker}/session/{take:05d}.wav"
                _wave(data / "voxceleb1" / part / "wav" / name, 2.5, speaker + take)
                lists["iden_split.txt"].append(f"{take + 1} {name}")
                if part == "test" and (speaker, take) != (first, 0):
                    lists["veri_test.txt"].append(f"{int(speaker == first)} {name} id{first}/session/00000.wav")
    for name, lines in lists.items():
        (data / "voxceleb1" / name).write_text("\n".join(lines) + "\n")


def _emotions(data: Path) -> None:
    waves = [f"Session1/sentences/wav/{i}.wav" for i in range(10)]
    for i, name in enumerate(waves):
        _wave(data / "iemocap" / name, seed=i)
    labels = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    rows = [{"path": name, "label": list(labels)[i % 4], "speaker": "Ses01F"} for i, name in enumerate(waves)]
    folder = data / "iemocap/meta_data/Session1"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}_meta_data.json").write_text(json.dumps({"labels": labels, "meta_data": rows}))


def _intents(data: Path) -> None:
    root = data / "fluent_speech_commands_dataset"
    lines = ["path,action,object,location"]
    for i, slots in enumerate(["activate,lights,kitchen", "increase,volume,none"] * 2):
        lines.append(f"{_wave(root / f'wavs/speakers/{i}.wav', seed=i).relative_to(root)},{slots}")
    (root / "data").mkdir()
    for split in ("train", "valid", "test"):
        (root / f"data/{split}_data.csv").write_text("\n".join(lines) + "\n")


def _letters(data: Path) -> None:
    lists = data / "librispeech/len_for_bucket"
    lists.mkdir(parents=True)
    (data / "librispeech/char.dict").write_text("\n".join(f"{letter} 1" for letter in "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"))
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        folder = data / "LibriSpeech" / part / "1/2"
        names = [_wave(folder / f"1-2-{i:04d}.flac", 0.5, i).stem for i in range(4)]
        (folder / "1-2.trans.txt").write_text("".join(f"{name} HELLO WORLD\n" for name in names))
        rows = [f"{part}/1/2/{name}.flac,8000" for name in names]
        (lists / f"{part}.csv").write_text("\n".join(["file_path,length", *rows]) + "\n")


def _conversations(data: Path) -> None:
    for part in ("train", "dev", "test"):
        folder = data / "diarization" / part
        files: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur")}
        for i in range(8):
            files["wav.scp"].append(f"r{i} {_wave(folder / f'{i}.wav', 2.0, i)}")
            files["reco2dur"].append(f"r{i} 2.0")
            for speaker, span in (("a", "0.0 1.2"), ("b", "0.8 2.0")):
                files["segments"].append(f"{speaker}{i} r{i} {span}")
                files["utt2spk"].append(f"{speaker}{i} {speaker}")
        files["spk2utt"] = [" ".join([speaker, *(f"{speaker}{i}" for i in range(8))]) for speaker in "ab"]
        for name, lines in files.items():
            (folder / name).write_text("\n".join(lines) + "\n")


def _queries(data: Path) -> None:
    root = data / "quesst14Database"
    (root / "scoring").mkdir(parents=True)
    for kind, count in (("utterances", 3), ("dev", 2)):
        names = [_wave(root / f"Audio/{kind}{i}.wav", 1.0 + i, i).relative_to(root.parent) for i in range(count)]
        (root / f"scoring/language_key_{kind}.lst").write_text("".join(f"{name} nnenglish\n" for name in names))


def _mixtures(data: Path, corpus: str, train: str, kinds: tuple[str, ...]) -> None:
    for part in (train, "dev", "test"):
        for kind, name in enumerate(kinds):
            folder = data / corpus / part / name
            lines = [f"u{i} {_wave(folder / f'{i}.wav', 1.0, 10 * kind + i)}" for i in range(3)]
            (folder / "wav.scp").write_text("\n".join(lines) + "\n")


def _two_speakers(data: Path) -> None:
    _mixtures(data, "libri2mix", "train-100", ("mix_clean", "s1", "s2"))


def _noisy(data: Path) -> None:
    _mixtures(data, "voicebank", "train", ("noisy", "clean"))


def _snips(data: Path) -> None:
    root = data / "audio_slu"
    (root / "data/nlu_annotation").mkdir(parents=True)
    rows = [f"u{i}\t{intent}" for i, intent in enumerate(("play", "weather"))]
    for split in ("train", "valid", "test"):
        (root / "data/nlu_annotation" / split).write_text("\n".join(["u_id\tintent", *rows]) + "\n")
    for speaker in ("Aditi", "Amy"):
        (root / f"audio_{speaker}/snips").mkdir(parents=True)
        for i in range(2):
            soundfile.write(root / f"audio_{speaker}/snips/u{i}.mp3", tone(1.0, 22_050, seed=i).numpy(), 22_050)


@dataclass(frozen=True)
class Task:
    """A task of SUPERB. ``tree`` writes a small corpus in the public layout; None for tasks that are not started."""

    name: str
    downstream: str
    tree: Callable[[Path], None] | None = None
    remark: str = ""
    settings: dict[str, Any] = field(default_factory=dict)  # of the small run


PAGE_TEXT = """\
## Which tasks start
s3prl {version}. *Imports*: what `run_downstream.py -d NAME` needs in addition to an installation of this package;
`pip install '.[superb]'` installs `dtw`, `editdistance`, `h5py` and `lxml`. *Starts*: on a small corpus in the public
layout, the expert is built, makes an optimiser step and is evaluated, on a CPU. The configs are SUPERB's published
settings, in [configs/superb](../configs/superb); `-d NAME` finds them without `-c`.

| task | `-d` | config | imports | starts | |
|---|---|---|---|---|---|
{rows}

This section is written by `PYTHONPATH=tests python tests/host/test_superb_tasks.py` from s3prl's installed sources. One
test compares it with the sources; another runs every task that starts, if its packages are installed.
"""
VERIFIED = "trained, resumed and evaluated by `tests/host/test_superb.py`"
SMALL = {"downstream_expert.modelrc.project_dim": 16, "downstream_expert.modelrc.RNNs.dim": [16, 16]}
ALONE = {"downstream_expert.max_workers": 1}
TASKS = (
    Task("keyword spotting (KS)", "speech_commands", _keywords, VERIFIED),
    Task("speaker verification (ASV)", "sv_voxceleb1", _speakers, VERIFIED),
    Task("speaker identification (SID)", "voxceleb1", _speakers),
    Task("emotion recognition (ER)", "emotion", _emotions, "lists of files: see `er.yaml`"),
    Task("intent classification (IC)", "fluent_commands", _intents),
    Task("speech recognition (ASR)", "asr", _letters, "`char.dict` and lists of lengths: see `asr.yaml`", SMALL),
    Task("phone recognition (PR)", "ctc", None, "and its vocabulary and lexicons"),
    Task("slot filling (SF)", "ctc", None, "and its vocabulary"),
    Task("intents of Audio SNIPS", "audio_snips", _snips, "s3prl's older expert, not SUPERB's"),
    Task("speaker diarisation (SD)", "diarization", _conversations, "error rates by `dscore`: see `sd.yaml`"),
    Task("query by example (QbE)", "quesst14_dtw", _queries, "nothing to train: `-m evaluate` writes it all", ALONE),
    Task(
        "source separation (SS)", "separation_stft2", _two_speakers, "asteroid 0.7 and librosa 0.11 were tried by hand"
    ),
    Task("speech enhancement (SE)", "enhancement_stft2", _noisy, "asteroid 0.7 and librosa 0.11 were tried by hand"),
    Task("speech translation (ST)", "speech_translation"),
)


def _closure(names: list[str]) -> set[str]:
    """Normalised names of these distributions and of all that they require."""
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            further = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        names += [need.name for need in further if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@functools.cache
def _base_modules() -> frozenset[str]:
    """Top-level modules that an installation without extras has."""
    setup = ast.walk(ast.parse(SETUP.read_text(encoding="utf-8")))
    required = next(node.value for node in setup if getattr(node, "arg", "") == "install_requires")
    ours = _closure([Requirement(text).name for text in ast.literal_eval(required)])
    modules = importlib.metadata.packages_distributions().items()
    found = {name for name, owners in modules if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & ours}
    return frozenset({*found, *sys.stdlib_module_names, "distilled_student"})


def _imports(body: list[ast.stmt], when_imported: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements outside ``try``, each with whether it runs when its module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, when_imported
        elif isinstance(node, ast.If | ast.With | ast.ClassDef):
            yield from _imports([*node.body, *getattr(node, "orelse", [])], when_imported)
        elif isinstance(node, ast.FunctionDef):
            yield from _imports(node.body, False)


def _find(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None


def _imported_modules(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """Full names of the modules that an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = "." * node.level + (node.module or "")
    base = importlib.util.resolve_name(base, package) if node.level else base
    if not base.startswith("s3prl"):
        return [base]
    return [base, *filter(_find, (f"{base}.{alias.name}" for alias in node.names))]


@functools.cache
def _modules(name: str) -> list[tuple[str, bool]] | None:
    """Modules that a module of s3prl imports, each with whether at its own import; None if s3prl lacks the module."""
    if (spec := _find(name)) is None:
        return None
    tree = ast.parse(spec.loader.get_data(spec.origin))  # with our patches
    return [(module, now) for node, now in _imports(tree.body) for module in _imported_modules(node, spec.parent)]


def needs(downstream: str) -> tuple[list[str], list[str]]:
    """The packages that an expert's import needs in addition to ours, and the modules that s3prl lacks for it."""
    packages, absent, seen = set(), set(), set()
    queue = [f"{DOWNSTREAMS}.{downstream}.expert"]
    while queue:
        if (name := queue.pop()) in seen:
            continue
        seen.add(name)
        if (modules := _modules(name)) is None:
            absent.add(name)
            continue
        for module, when_imported in modules:
            top = module.partition(".")[0]
            if top == "s3prl" and (when_imported or module.startswith(f"{DOWNSTREAMS}.{downstream}.")):
                queue.append(module)
            elif when_imported and top not in {*_base_modules(), "s3prl"}:
                packages.add(top)
    return sorted(packages), sorted(absent)


def page() -> str:
    """The section, from s3prl's installed sources and the tasks that the test below starts."""
    register()
    rows = []
    for task in TASKS:
        packages, absent = needs(task.downstream)
        package_names = ", ".join(f"`{name}`" for name in packages)
        missing = ", ".join(f"`{name.removeprefix(f'{DOWNSTREAMS}.')}`" for name in absent)
        starts = "yes" if task.tree else f"no: s3prl's package lacks {missing}" if absent else "not tried"
        config = f"`{superb.CONFIGS[task.downstream]}`" if task.downstream in superb.CONFIGS else ""
        imports = f"with {package_names}" if packages else "yes"
        cells = (task.name, f"`{task.downstream}`", config, imports, starts, task.remark)
        rows.append(f"| {' | '.join(cells)} |")
    return PAGE_TEXT.format(version=importlib.metadata.version("s3prl"), rows="\n".join(rows))


def parts() -> tuple[str, str]:
    """The document: what is written by hand, and its last section."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(PAGE_TEXT.partition("\n")[0] + "\n")
    return text[:start], text[start:]


def test_the_table_lists_what_each_expert_of_the_installed_s3prl_needs_and_whether_it_starts() -> None:
    assert parts()[1] == page()


@pytest.mark.parametrize("task", [task for task in TASKS if task.tree], ids=lambda task: task.downstream)
def test_a_task_listed_as_starting_makes_a_step_and_is_evaluated(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    for package in needs(task.downstream)[0]:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task.tree(tmp_path / "data")
    settings = read_yaml(find_config(superb.CONFIGS[task.downstream], "superb"))["downstream_expert"]
    section = "loaderrc" if "loaderrc" in settings else "datarc"
    sizes = {key: size for key, size in settings[section].items() if re.fullmatch("(train_)?batch_?size", key)}
    values = {f"downstream_expert.{section}.{key}": min(size, 2) for key, size in sizes.items()} | task.settings
    values[f"downstream_expert.{section}.num_workers"] = 0
    for key in ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step"):
        values[f"runner.{key}"] = 1
    options = ",,".join(f"config.{key}={value}" for key, value in values.items())
    start = ["-u", "fbank", "-d", task.downstream, "-p", "exp", "--device", "cpu", "-o", options]
    if task.downstream == "quesst14_dtw":
        assert launch.main(["-m", "evaluate", "-t", "dev", *start]) == 0
        assert Path("exp/benchmark.stdlist.xml").read_text().count("<term ") == 2 * 3
        return
    assert launch.main(["-m", "train", *start]) == 0
    state = torch.load("exp/states-1.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["Downstream"].values())
    assert state["Optimizer"]["state"], "the optimiser made a step"
    split = "test-clean" if task.downstream == "asr" else "test"
    assert launch.main(["-m", "evaluate", "-t", split, "-e", "exp/states-1.ckpt", "--device", "cpu"]) == 0


if __name__ == "__main__":
    PAGE.write_text(parts()[0] + page(), encoding="utf-8")
