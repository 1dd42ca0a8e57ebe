"""Writes the static site: the page, a stream with what it needs, and onnxruntime-web or where to load it."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_files, write_json
from distilled_student.device.model_files import one_line_errors, open_stream
from distilled_student.onnx.words import WEIGHTS

if TYPE_CHECKING:
    from distilled_student.onnx import Model, Stream
    from distilled_student.onnx.words import WordMaps

HERE = Path(__file__).parent
PAGE = HERE / "page"
RUNTIME = HERE / "page" / "ort"  # `make web` puts the files of onnxruntime-web there
PINNED = HERE / "onnxruntime_web.json"  # their version, names and hashes
CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@{version}/dist/"
TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}  # of onnxruntime -> of onnxruntime-web
WORD_MAPS = "words.f32"  # the large arrays of the maps of words, one after the other, in float32
MAP_ARRAYS = (*WEIGHTS, "others")  # of `WordMaps`, in this file
MAP_VALUES = ("segments", "slope", "alarms", "margins")  # in model.json
MARK = "runtime.json"  # a file that every site has


def write_site(folder: Path, model: str) -> bool:
    """Write the site with a model into a new or empty folder, or over an earlier site.

    Args:
        model: See `open_stream`.

    Returns:
        Whether the site has the files of onnxruntime-web. Else the page loads them from a public CDN.

    Raises:
        UserError: the folder holds other files or cannot be written; see `open_stream`.
    """
    stream = open_stream(model)
    description = describe_model(stream, model)
    files = {description["file"]: stream.model.file.read_bytes()}
    if (maps := word_maps(stream.model)) is not None:
        files[WORD_MAPS] = b"".join(getattr(maps, name).astype("<f4").tobytes() for name in MAP_ARRAYS)
    _check_target(folder)
    runtime, is_local = describe_runtime()
    try:
        shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("ort"))
        if (folder / "ort").is_dir():
            shutil.rmtree(folder / "ort")  # of an earlier site
        (folder / "model" / WORD_MAPS).unlink(missing_ok=True)
        if is_local:
            (folder / "ort").mkdir()
            for part in ("script", "wasm"):
                shutil.copy(RUNTIME / runtime[part]["name"], folder / "ort")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    write_files(folder / "model", files)
    write_json(folder / "model" / "model.json", description)
    write_json(folder / MARK, runtime)
    return is_local


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--copy {folder}: is a file; give the name of a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise UserError(f"--copy {folder}: holds other files; give a new folder, an empty one or an earlier copy")


def describe_model(stream: Stream, name: str) -> dict[str, Any]:
    """What the page has to know of a stream, since onnxruntime-web does not read metadata."""
    from dataclasses import asdict

    from distilled_student.onnx.speakers import FALSE_ACCEPTS
    from distilled_student.onnx.words import CONCATENATED

    model = stream.model
    inputs = [tensor for tensor in model.session.get_inputs() if tensor.name.startswith("state_")]
    outputs = model.output_shapes
    maps = word_maps(model)
    needed = ("keyword_scores", "speaker_embedding", *(() if maps is None else (CONCATENATED,)))
    decided = [output for output in needed if output in outputs]
    return {
        "name": Path(name).stem,
        "file": "stream.onnx",
        "bytes": model.file.stat().st_size,
        "fingerprint": model.fingerprint,
        "labels": model.labels,
        "rate": model.rate,
        "chunk": model.chunk,
        "hop": stream.hop,
        "window": model.window,
        "padded_to": model.padded_to,
        "repeated_to": model.repeated_to,
        "state": [{"name": state.name, "type": TYPES[state.type], "shape": state.shape} for state in inputs],
        "outputs": [*decided, *(output for output in outputs if output.startswith("next_"))],
        "embedding": outputs.get("speaker_embedding", [0, 0])[1],
        "detector": asdict(model.detector_settings),
        "calibration": None if model.calibration is None else json.loads(model.calibration.to_json()),
        "false_accepts": FALSE_ACCEPTS,
        "words": None if maps is None else describe_words(maps),
    }


def word_maps(model: Model) -> WordMaps | None:
    """What words of one's own need; None if the model has no file of it. Raises UserError if the file is damaged."""
    from distilled_student.onnx.words import WORDS

    if not model.file.with_name(WORDS).is_file():
        return None
    with one_line_errors():
        return model.word_maps


def describe_words(maps: WordMaps) -> dict[str, Any]:
    """What the page has to know of the maps of words, and where the arrays are in the file `WORD_MAPS`."""
    import numpy as np

    from distilled_student.onnx.words import FALSE_ALARMS

    return {
        "file": WORD_MAPS,
        "digest": maps.digest,
        "size": maps.mapping.shape[1],
        "false_alarms": FALSE_ALARMS,
        "arrays": [{"name": name, "shape": list(getattr(maps, name).shape)} for name in MAP_ARRAYS],
        **{name: np.asarray(getattr(maps, name)).tolist() for name in MAP_VALUES},
    }


def describe_runtime() -> tuple[dict[str, Any], bool]:
    """What the page has to know of onnxruntime-web, and whether its files are here.

    Raises:
        UserError: the files are here, but they are not the pinned ones.
    """
    pinned = read_json(PINNED)
    files = [pinned["script"], pinned["wasm"]]
    is_local = all((RUNTIME / file["name"]).is_file() for file in files)
    if is_local and any(integrity(RUNTIME / file["name"]) != file["integrity"] for file in files):
        raise UserError(f"{RUNTIME}: is not onnxruntime-web {pinned['version']}; run `make web` again, or delete it")
    return pinned | {"base": "ort/" if is_local else CDN.format(version=pinned["version"])}, is_local


def integrity(file: Path) -> str:
    """The hash of a file as browsers check it: ``sha384-`` and base64."""
    return "sha384-" + base64.b64encode(hashlib.sha384(file.read_bytes()).digest()).decode()
