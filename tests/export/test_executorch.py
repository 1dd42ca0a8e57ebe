"""ExecuTorch programs: ExecuTorch's runtime computes what PyTorch computes."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, tone
from test_streaming import CAUSAL, joint

import distilled_student as ds
from distilled_student.export.executorch import SingleUtterance, check_program, export_executorch

pytest.importorskip("executorch.version")  # not the runtime: each worker of the suite would import it, for two seconds
SMALLEST = SMALL | {"layers": 1}
SIZES = {
    "causal": dataclasses.replace(CAUSAL, **SMALLEST),
    "causal, short utterances repeated": dataclasses.replace(CAUSAL, **SMALLEST),
    "waveform": ds.StudentConfig(**SMALLEST, conv_dim=[8] * 7),
}
# a model that repeats the short utterances of speakers encodes them a second time: such a program takes a minute
FORMS = ["causal", *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name != "causal")]


@pytest.fixture(scope="module")
def runtime() -> Any:
    return importlib.import_module("executorch.runtime").Runtime.get()


@pytest.fixture(scope="module", params=FORMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model, file = joint(SIZES[request.param]), tmp_path_factory.mktemp("executorch") / "model.pte"
    model.tasks["sv"].calibration[0] = torch.tensor([20.0, -9.0])
    model.tasks["sv"].settings.fill = request.param != "causal"
    export_executorch(model, file, max_seconds=2.0)
    return model, file


def test_a_program_computes_what_pytorch_computes_at_any_length(runtime: Any, exported: tuple[Any, Path]) -> None:
    model, file = exported
    method = runtime.load_program(file).load_method("forward")
    # shorter after longer: no state of the longer may remain
    for samples in (1_600, 1_601, 9_999, 32_000, 16_000, 24_001):
        wave = tone(2.0, seed=samples)[None, :samples]
        expected = model(wave, torch.tensor([samples]))
        hidden_state, keyword_scores, speaker_embedding = method.execute([wave])
        torch.testing.assert_close(hidden_state, expected.hidden_state, atol=1e-4, rtol=0)
        torch.testing.assert_close(keyword_scores, expected.keyword_scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(speaker_embedding, expected.speaker_embedding, atol=1e-4, rtol=0)


def test_a_program_fills_short_utterances_for_each_task(runtime: Any, exported: tuple[Any, Path]) -> None:
    model, file = exported
    method = runtime.load_program(file).load_method("forward")
    wave = tone(0.7) * torch.linspace(1.0, 0.2, 11_200)
    _, keyword_scores, speaker_embedding = method.execute([wave[None]])
    found = {"keyword_scores": keyword_scores, "speaker_embedding": speaker_embedding}
    repeated = np.resize(wave, 32_000 if model.tasks["sv"].settings.fill else len(wave))
    longer = {"keyword_scores": np.pad(wave, (0, 4_800)), "speaker_embedding": repeated}
    for name, filled in longer.items():
        features = model.features(model.student(model.gain * torch.from_numpy(filled)[None]))
        count = len(filled) // 320
        index = torch.arange(count).clamp(max=features.shape[1] - 1)  # as s3prl, which repeats the last frame
        expected = model.head(name, features[:, index], torch.tensor([count]))
        torch.testing.assert_close(found[name], expected, atol=1e-4, rtol=0)


def test_a_program_returns_its_labels_rate_and_limits(runtime: Any, exported: tuple[Any, Path]) -> None:
    model, file = exported
    program = runtime.load_program(file)
    constants = {name: program.load_method(name).execute([])[0] for name in program.method_names - {"forward"}}
    assert json.loads(constants["labels"]) == model.labels
    assert json.loads(constants["outputs"]) == ["hidden_state", "keyword_scores", "speaker_embedding"]
    limits = tuple(constants[name] for name in ("sample_rate", "shortest", "longest"))
    assert limits == ("16000", "1600", "32000")
    assert (float(constants["sv_slope"]), float(constants["sv_offset"])) == (20.0, -9.0)


def test_a_program_that_differs_from_its_model_is_an_error(exported: tuple[Any, Path]) -> None:
    model, file = exported
    other = joint(model.student.config)
    other.tasks["kws"].head.linear.bias += torch.arange(12)
    with pytest.raises(ds.UserError, match=r"keyword_scores: differs by .* from PyTorch on 16000 samples"):
        check_program(file.read_bytes(), SingleUtterance(other), [tone(1.0)])


def test_no_file_is_written_if_the_longest_audio_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="max_seconds: must be at least 1, found"):
        export_executorch(joint(CAUSAL), tmp_path / "model.pte", max_seconds=0.5)
    assert not list(tmp_path.iterdir())
