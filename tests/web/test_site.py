"""The static site that `distilled-student web` writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from distilled_student.cli import main
from distilled_student.common.shipped_models import MODELS
from distilled_student.device.model_files import open_stream
from distilled_student.onnx import Model
from distilled_student.onnx.words import CONCATENATED
from distilled_student.web import site

ROOT = Path(__file__).parents[2]
WEB = ROOT / "upstream/distilled_student/web"
ORT = ("ort/ort-wasm-simd-threaded.wasm", "ort/ort.wasm.bundle.min.mjs")


def without_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site, "RUNTIME", tmp_path / "no-runtime")


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_copy_has_the_page_and_the_model_and_loads_the_runtime_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    without_runtime(monkeypatch, tmp_path)
    run("web", "--copy", str(tmp_path / "copy"), "--model", "tiny")
    found = files(tmp_path / "copy")
    assert {"index.html", "style.css", "page.mjs", "worker.mjs", "model/stream.onnx", "model/model.json"} <= found
    assert (tmp_path / "copy/model/stream.onnx").read_bytes() == (MODELS / "tiny/stream.onnx").read_bytes()
    runtime = json.loads((tmp_path / "copy/runtime.json").read_text())
    assert runtime["base"] == f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{runtime['version']}/dist/"
    assert all(re.fullmatch(r"sha384-[\w+/]{64}", runtime[part]["integrity"]) for part in ("script", "wasm"))
    assert "public CDN" in capsys.readouterr().out


def test_the_runtime_of_make_web_is_copied_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {part: site.read_json(site.PINNED)[part]["name"] for part in ("script", "wasm")}
    runtime = tmp_path / "ort"
    runtime.mkdir()
    for name in names.values():
        (runtime / name).write_text(name)
    pinned = {part: {"name": name, "integrity": site.integrity(runtime / name)} for part, name in names.items()}
    (tmp_path / "pinned.json").write_text(json.dumps(pinned | {"version": "1.2.3"}))
    monkeypatch.setattr(site, "RUNTIME", runtime)
    monkeypatch.setattr(site, "PINNED", tmp_path / "pinned.json")
    assert site.write_site(tmp_path / "copy", "tiny")
    assert files(tmp_path / "copy") >= set(ORT)
    assert json.loads((tmp_path / "copy/runtime.json").read_text())["base"] == "ort/"
    (runtime / names["script"]).write_text("changed")
    with pytest.raises(site.UserError, match=r"is not onnxruntime-web 1\.2\.3; run `make web` again"):
        site.write_site(tmp_path / "copy", "tiny")


def test_a_second_copy_replaces_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_runtime(monkeypatch, tmp_path)
    (tmp_path / "copy/ort").mkdir(parents=True)
    (tmp_path / "copy/runtime.json").write_text("{}")
    site.write_site(tmp_path / "copy", "tiny")
    site.write_site(tmp_path / "copy", "edge")
    assert json.loads((tmp_path / "copy/model/model.json").read_text())["name"] == "edge"
    assert not (tmp_path / "copy/ort").exists()


def test_the_page_has_all_that_the_metadata_says(tmp_path: Path) -> None:
    model = Model(MODELS / "edge/stream.onnx")
    found = site.describe_model(open_stream("edge"), "edge")
    assert found["fingerprint"] == model.fingerprint and found["labels"] == model.labels
    assert found["hop"] == 1280 and found["chunk"] == model.chunk and found["embedding"] == 192
    assert found["detector"]["threshold"] == model.detector_settings.threshold
    assert found["calibration"] == json.loads(model.calibration.to_json())
    state = {tensor.name: tensor.shape for tensor in model.session.get_inputs()[1:]}
    assert {part["name"]: part["shape"] for part in found["state"]} == state
    assert {f"next_{name.removeprefix('state_')}" for name in state} <= set(found["outputs"])


def test_a_site_has_the_maps_of_words_only_if_the_model_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_runtime(monkeypatch, tmp_path)
    site.write_site(tmp_path / "copy", "tiny")
    words = json.loads((tmp_path / "copy/model/model.json").read_text())["words"]
    maps = Model(MODELS / "tiny/stream.onnx").word_maps
    numbers = np.fromfile(tmp_path / "copy/model/words.f32", "<f4")
    *_, others = words["arrays"]
    assert words["digest"] == maps.digest and others == {"name": "others", "shape": list(maps.others.shape)}
    np.testing.assert_array_equal(numbers[-maps.others.size :], maps.others.ravel())
    shutil.copy(MODELS / "tiny/stream.onnx", tmp_path)
    site.write_site(tmp_path / "copy", str(tmp_path / "stream.onnx"))
    found = json.loads((tmp_path / "copy/model/model.json").read_text())
    assert found["words"] is None and CONCATENATED not in found["outputs"]
    assert not (tmp_path / "copy/model/words.f32").exists()


def test_the_pinned_runtime_is_the_locked_one() -> None:
    pinned = json.loads((WEB / "onnxruntime_web.json").read_text())
    package = json.loads((ROOT / "package.json").read_text())
    lock = json.loads((ROOT / "package-lock.json").read_text())
    assert package["dependencies"] == {"onnxruntime-web": pinned["version"]}
    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == pinned["version"]
    assert lock["packages"]["node_modules/onnxruntime-web"]["integrity"].startswith("sha512-")
    installed = ROOT / "node_modules/onnxruntime-web/dist"
    if installed.is_dir():
        for part in ("script", "wasm"):
            assert site.integrity(installed / pinned[part]["name"]) == pinned[part]["integrity"]


def test_nothing_of_the_page_refers_to_another_site() -> None:
    for file in (WEB / "page").glob("*.*"):
        urls = re.findall(r"https?://[^\s\"'`;]+", file.read_text())
        assert set(urls) <= {"https://cdn.jsdelivr.net", "http://www.w3.org/2000/svg"}, file


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nobody", "--model nobody: no such file or folder; edge, tiny ship with the package"),
        ("{tmp}", "has neither a checkpoint of a joint training run"),
        ("{tmp}/page.onnx", "not readable as an ONNX file"),
    ],
)
def test_a_model_that_is_no_stream_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, model: str, message: str
) -> None:
    (tmp_path / "page.onnx").write_text("no graph")
    error = refused(["web", "--copy", str(tmp_path / "copy"), "--model", model.format(tmp=tmp_path)], capsys)
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "copy").exists()


def test_a_folder_with_other_files_is_not_written_into(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    assert "holds other files" in refused(["web", "--copy", str(tmp_path)], capsys)
    assert "is a file" in refused(["web", "--copy", str(tmp_path / "thesis.txt")], capsys)
    assert files(tmp_path) == {"thesis.txt"}
