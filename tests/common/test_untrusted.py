"""Untrusted data: none of it runs, leads out of its folder, or changes the structure of a document."""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL

from distilled_student import StudentConfig, UserError, build_student, load_student
from distilled_student.benchmark.execute import RESULTS, finished
from distilled_student.benchmark.report import print_table, write_report
from distilled_student.common.errors import one_line
from distilled_student.common.files import read_torch
from distilled_student.common.plots import plot_confusion
from distilled_student.common.untrusted import escape_markdown, leads_outside, markdown_link
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig
from distilled_student.distillation.initialize import Initialization
from distilled_student.distillation.model_card import write_card
from distilled_student.host.saved_runs import read_checkpoint
from distilled_student.prepare.unpack import temporary_folder, untar, unzip
from distilled_student.teachers.open import open_teacher

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("upstream", "downstream") for path in (ROOT / folder).rglob("*.py"))

# nothing runs -----------------------------------------------------------------------------------------------------


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.command = f"touch '{path}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def refused(read: Callable[[], Any], path: Path) -> None:
    with pytest.raises(UserError) as error:
        read()
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_code_in_a_checkpoint_of_the_runner_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "states-1.ckpt"
    torch.save({"Args": Namespace(), "Config": Harmful(tmp_path / "ran"), "Downstream": {}}, path)
    refused(lambda: read_checkpoint(path), path)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_of_a_distillation_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    torch.save({"student": {}, "settings": Harmful(tmp_path / "ran")}, path)
    refused(lambda: read_torch(path), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["hubert", "distilled_student", "wavlm"])
def test_code_in_the_folder_of_a_student_or_teacher_is_refused_and_does_not_run(
    name: str, zipped: bool, kind: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "distilled_student":
        text = '{"model_type": "distilled_student"}'
    else:
        import transformers

        config = {"hubert": transformers.HubertConfig, "wavlm": transformers.WavLMConfig}[kind]
        text = config(**sizes, num_conv_pos_embedding_groups=2).to_json_string(use_diff=False)
    (tmp_path / "config.json").write_text(text)
    torch.save({"weight": Harmful(tmp_path / "ran")}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    for read in (load_student, open_teacher):
        refused(lambda read=read: read(tmp_path), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_files_next_to_a_teachers_weights_do_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoModel": "m.M", "AutoConfig": "m.C"}}'
    )
    (tmp_path / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass C: ...\nclass M: ...\n")
    refused(lambda: open_teacher(tmp_path), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["student.ckpt", "student.pt"])
def test_a_payload_in_a_students_file_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    torch.save({"Config": {"distiller": Harmful(tmp_path / "ran")}, "Distiller": {}}, tmp_path / name)
    refused(lambda: load_student(tmp_path / name), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_scores_of_a_run_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RESULTS).write_text('{"train_seconds": 1, "upstream": {}}')
    scores = folder / "scores-test.npz"
    np.savez(scores, sv_scores=np.array([Harmful(tmp_path / "ran")], dtype=object))
    bench = SimpleNamespace(output=tmp_path, settings=lambda run: {}, suite=SimpleNamespace(split="test"))
    run = SimpleNamespace(folder=lambda output: folder)
    refused(lambda: finished(bench, run), scores)
    assert not (tmp_path / "ran").exists()


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def flag(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_the_package_runs_code_from_files(path: Path) -> None:
    for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path}:{call.lineno}: {name}"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), where
        assert not re.fullmatch(r"(pickle|cPickle|dill|marshal|joblib|shelve)\.(load|loads|open|Unpickler)", name), (
            where
        )
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "OmegaConf.load"), where
        assert name != "torch.load" or flag(call, "weights_only") is True, where
        assert name != "np.load" or not flag(call, "allow_pickle"), where
        assert not name.startswith("subprocess.") or not flag(call, "shell"), where
        assert not name.endswith("from_pretrained") or flag(call, "trust_remote_code") is False, where


# nothing leaves its folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/a", "../a", "a/../b", "a/..", "..", "C:\\a", "C:a", "..\\a", "\\\\host\\a", "//a"])
def test_a_name_that_leads_out_of_its_folder_is_detected(name: str) -> None:
    assert leads_outside(name)


@pytest.mark.parametrize("name", ["a", "a/b.wav", "./a", "a b/..c", "...", "", "über/ß"])
def test_a_name_inside_its_folder_is_allowed(name: str) -> None:
    assert not leads_outside(name)


def hostile_tar(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        harmless = tarfile.TarInfo("corpus/a.txt")
        harmless.size = 1
        tar.addfile(harmless, io.BytesIO(b"a"))
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


HOSTILE = {
    "absolute": member("/tmp/escaped"),
    "above": member("../escaped"),
    "above in the middle": member("corpus/../../escaped"),
    "a link out": member("corpus/link", tarfile.SYMTYPE, "/etc"),
    "a link up": member("corpus/link", tarfile.SYMTYPE, "../../.."),
    "a link within": member("corpus/link", tarfile.SYMTYPE, "a.txt"),
    "a hard link": member("corpus/link", tarfile.LNKTYPE, "/etc/passwd"),
    "a device": member("corpus/device", tarfile.CHRTYPE),
    "a pipe": member("corpus/pipe", tarfile.FIFOTYPE),
    "a name that is too long": member("corpus/" + "x" * 300),
    "a file that is a folder": member("corpus/a.txt/b"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_tar_with_a_member_outside_the_folder_is_refused_completely(what: str, tmp_path: Path) -> None:
    archive = hostile_tar(tmp_path / "a b\n[red].tar.gz", HOSTILE[what])
    with pytest.raises(UserError) as error:
        untar(archive, tmp_path / "data" / "corpus", "corpus")
    assert "[red].tar.gz" in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "escaped").exists() and not Path("/tmp/escaped").exists()
    assert list((tmp_path / "data").iterdir()) == []


def test_a_tar_that_leads_outside_through_its_own_link_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(member("corpus/link", tarfile.SYMTYPE, str(tmp_path)))
        inside = member("corpus/link/escaped")
        inside.size = 1
        tar.addfile(inside, io.BytesIO(b"x"))
    with pytest.raises(UserError, match=r"corpus/link: is neither a file nor a folder: refused"):
        untar(archive, tmp_path / "data" / "corpus", "corpus")
    assert not (tmp_path / "escaped").exists()


def hostile_zip(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wav/a.wav", b"a")
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr = name, mode << 16
        archive.writestr(info, b"../../escaped")
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("/tmp/escaped", 0),
        ("../escaped", 0),
        ("wav/../../escaped", 0),
        ("..\\escaped", 0),
        ("wav/l", stat.S_IFLNK | 0o777),
    ],
)
def test_a_zip_with_a_member_outside_the_folder_is_refused_completely(name: str, mode: int, tmp_path: Path) -> None:
    archive, target = hostile_zip(tmp_path / "[b]a\n.zip", name, mode), tmp_path / "data" / "vox"
    with pytest.raises(UserError, match=r"\.zip: cannot be unpacked .*: refused\)$") as error:  # noqa: SIM117
        with temporary_folder(target, archive) as partial:
            unzip([archive], partial)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "escaped").exists() and not Path("/tmp/escaped").exists()
    assert list((tmp_path / "data").iterdir()) == []


# nothing changes a document -----------------------------------------------------------------------------------------

NASTY = [
    "<script>alert(1)</script>",
    "a | b",
    "`code`",
    "x](http://evil.example)",
    "![x](http://evil.example/a.png)",
    "one\n\n# two",
    "# heading",
    "- item",
    "1. item",
    "***",
    "```\nopen",
    "<!-- open",
    "a\r\u2028b",
    "back\\slash |",
    "~~x~~ __y__ $z$",
    "\udcff",
]


def shape(document: str) -> tuple[list[str], list[int], int]:
    """The structure of a document: heading level of each line, cells of each table row, number of lines."""
    lines = document.splitlines()
    cells = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines if line.startswith("|")]
    return [re.match(r"#*", line)[0] for line in lines], cells, len(lines)


@pytest.mark.parametrize("text", NASTY)
def test_escaped_text_is_one_line_without_markdown(text: str) -> None:
    line = escape_markdown(text)
    assert len(line.splitlines()) <= 1 and not re.search(r"[<>]", line)
    line.encode("utf-8")
    assert not re.search(r"(?<!\\)(?:\\\\)*[`|*\[\]~$]", line)
    assert not re.match(r"([#+=-]|\d+[.)](\s|$))", line)


def test_harmless_names_are_not_changed() -> None:
    for name in ("train-clean-100", "wav2vec2-base", "distil_student, joint (frozen)", "3.5 hours", "a: b; c"):
        assert escape_markdown(name) == name


def test_an_address_becomes_a_link_that_shows_it() -> None:
    assert markdown_link("https://arxiv.org/abs/2210.16611v2") == "<https://arxiv.org/abs/2210.16611v2>"
    assert markdown_link("https://a.example/<script> x") == "<https://a.example/%3Cscript%3E%20x>"
    assert markdown_link("javascript:alert(`1`)") == r"javascript:alert(\`1\`)"


def card(folder: Path, text: str) -> str:
    student = build_student(StudentConfig(conv_dim=[8] * 7, **SMALL))
    settings = DistillConfig(f"/teachers/{text.replace('/', '')}", "out", DataConfig(["a"]), targets=[1, 2])
    settings.description = text
    folder.mkdir()
    write_card(folder, student, settings, [[1, 0.5]], 3600.0, text, Initialization({text: []}))
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", NASTY)
def test_no_name_changes_the_structure_of_a_model_card(text: str, tmp_path: Path) -> None:
    found = card(tmp_path / "nasty", text)
    assert shape(found) == shape(card(tmp_path / "plain", "plain"))
    assert "<" not in found


def report(folder: Path, text: str) -> str:
    names = {"title": text, "protocol": text, "tables": {text: ["s"]}, "reference": f"{text}/s"}
    suite = SimpleNamespace(**names, results=None, models={}, settings={"s": None}, split="test")
    row = {"name": text, "model": text, "setting": "s", "errors": {"0": text}, "published": None, "intervals": {}}
    write_report(folder, suite, [row | {"kws_accuracy": 1.0}])
    print_table(suite, [row], text)
    return (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [*NASTY, "[/]", "[bold]x"])
def test_no_name_changes_the_structure_of_a_report(text: str, tmp_path: Path) -> None:
    assert shape(report(tmp_path / "nasty", text)) == shape(report(tmp_path / "plain", "plain"))


def test_a_name_with_characters_of_a_formula_can_be_plotted(tmp_path: Path) -> None:
    kws = {"confusion": [[1, 0], [0, 1]], "labels": ["$\\frac{$", "b"], "accuracy": 50.0}
    plot_confusion(tmp_path / "a.png", "$\\wrong{$", kws)
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb\x85\u2028", "\x1b[31mred", "\udcff", "\x00"])
def test_a_message_is_one_line_that_any_terminal_prints(text: str) -> None:
    message = str(UserError(f"{text}.wav: no such file"))
    assert message.isprintable() and len(message.splitlines()) == 1
    assert one_line(message) == message  # raising it again does not change the message
    message.encode("utf-8")
