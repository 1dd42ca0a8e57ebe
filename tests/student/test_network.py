"""The student: shapes, padding, its two front ends, its folder."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tone

import distilled_student as ds
from distilled_student.checkpoints.foreign_config import hubert_config
from distilled_student.student.convolution import (
    convolve,
    convolve_spectra,
    kernel_parts,
    kernel_spectra,
    normalized_convolution,
    windows,
)
from distilled_student.student.frontend import LogMel
from distilled_student.student.lengths import frame_mask


@pytest.fixture(params=["cnn", "cnn-layer-norm", "cnn-normalized", "logmel", "shared", "slow", "slow-causal", "edge"])
def student(request: pytest.FixtureRequest, small_cnn: ds.StudentConfig, small_logmel: ds.StudentConfig) -> ds.Student:
    torch.manual_seed(0)
    configs = {
        "cnn": small_cnn,
        "cnn-layer-norm": dataclasses.replace(small_cnn, conv_norm="layer", norm_first=True),
        "cnn-normalized": dataclasses.replace(small_cnn, normalize=True, conv_norm="layer", conv_bias=True),
        "logmel": small_logmel,
        "shared": dataclasses.replace(small_logmel, shared=True),
        "slow": dataclasses.replace(small_cnn, encoder_stride=2),
        "slow-causal": dataclasses.replace(small_logmel, encoder_stride=3, positions="conv", causal=True),
        "edge": ds.named_size("edge"),
    }
    return ds.build_student(configs[request.param]).eval()


def test_padding_never_changes_a_result(student: ds.Student) -> None:
    lengths = torch.tensor([24_000, 9_999, 5_121, 401, 100])
    waveforms = torch.randn(5, 24_000)  # noise behind the end must not matter either
    for i, n in enumerate(lengths):
        waveforms[i, :n] = tone(int(n) / 16_000 + 0.01, seed=i)[:n]
    with torch.no_grad():
        batch = student(waveforms, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = student(waveforms[i : i + 1, :n])
            frames = int(alone.lengths[0])
            assert int(batch.lengths[i]) == frames
            for together, single in zip(batch.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(together[i, :frames], single[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.predictions[i, :, :frames], alone.predictions[0], atol=1e-5, rtol=0)


def test_gradients_do_not_flow_from_padding(student: ds.Student) -> None:
    waveforms = torch.randn(2, 8_000, requires_grad=True)
    output = student(waveforms, torch.tensor([8_000, 4_000]))
    (output.last_hidden_state.square().sum() + output.predictions[1, :, : output.lengths[1]].sum()).backward()
    assert waveforms.grad[1, 4_000:].abs().max() == 0
    assert waveforms.grad[1, :4_000].abs().max() > 0


def test_output_has_the_documented_shapes(small_cnn: ds.StudentConfig) -> None:
    output = ds.build_student(small_cnn)(torch.randn(3, 16_000))
    assert [tuple(h.shape) for h in output.hidden_states] == [(3, 49, 16)] * 3
    assert output.last_hidden_state is output.hidden_states[-1]
    assert tuple(output.predictions.shape) == (3, 2, 49, 16)
    assert output.lengths.tolist() == [49] * 3


def test_paper_student_has_the_papers_size() -> None:
    student = ds.build_student("paper")
    counts = {part: sum(p.numel() for p in student.get_submodule(part).parameters()) for part in ("", "predictions")}
    assert counts["predictions"] == 3_543_552
    assert counts[""] - counts["predictions"] == 23_492_224
    assert round(counts[""] / 1e6, 2) == 27.04


def test_as_a_hubert_model_the_paper_student_has_the_published_count() -> None:
    from transformers import HubertConfig, HubertModel

    with torch.device("meta"):  # shapes alone
        model = HubertModel(HubertConfig(**hubert_config(ds.named_size("paper"))))
    # 768 more than ours: HubertModel's embedding of masked frames, which nothing reads outside of pre-training
    assert model.masked_spec_embed.numel() == 768
    assert model.num_parameters() == 23_492_992


def test_the_first_convolution_and_its_norm_in_one_product_equal_torchs_on_the_valid_part() -> None:
    waveforms, weight, scale, shift = torch.randn(2, 260) + 3.0, torch.randn(4, 10), torch.randn(4), torch.randn(4)
    x, lengths = windows(waveforms, 10, 5, 51), torch.tensor([51, 31])
    together = normalized_convolution(x, frame_mask(lengths, 51), weight, scale, shift, 1e-5)
    for row, frames in enumerate(lengths.tolist()):
        convolved = torch.nn.functional.conv1d(
            waveforms[row : row + 1, None, : 5 * frames + 5], weight[:, None], stride=5
        )
        expected = torch.nn.functional.group_norm(convolved, 4, scale, shift, 1e-5)
        torch.testing.assert_close(together[row, :frames].T, expected[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (1, 1), (5, 2)])
def test_a_convolution_over_rows_and_its_gradients_equal_torchs(kernel: int, stride: int) -> None:
    x, weight = torch.randn(2, 24, 4, dtype=torch.float64), torch.randn(6, 4, kernel, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    ours, theirs = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    together = convolve(ours[0], kernel_parts(ours[1], stride), ours[2], stride)
    expected = torch.nn.functional.conv1d(theirs[0].transpose(1, 2), *theirs[1:], stride=stride).transpose(1, 2)
    together = together[:, : expected.shape[1]]
    torch.testing.assert_close(together, expected)
    for one in (together, expected):
        one.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("frames", [8, 17, 40])
def test_a_convolution_by_spectra_equals_torchs(frames: int) -> None:
    x, weight = torch.randn(2, frames, 6, dtype=torch.float64), torch.randn(6, 2, 8, dtype=torch.float64)
    found = convolve_spectra(x, kernel_spectra(weight, 3), 8)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight, groups=3).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_weights_that_change_are_laid_out_anew(student: ds.Student) -> None:
    wave = tone(0.5)[None]
    with torch.no_grad():
        before = student(wave).last_hidden_state
        for parameter in student.parameters():
            parameter.mul_(1.1)
        changed = student(wave).last_hidden_state
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(student(wave).last_hidden_state, changed, atol=1e-5, rtol=0)  # with gradients, anew


def test_the_past_of_a_causal_student_does_not_change_with_its_future() -> None:
    torch.manual_seed(0)
    student, waves = ds.build_student("tiny").eval(), torch.stack([tone(2.0, seed=i) for i in range(2)])
    waves[1, :16_000] = waves[0, :16_000]
    with torch.no_grad():
        states = student(waves).last_hidden_state
    torch.testing.assert_close(states[0, :50], states[1, :50], atol=1e-6, rtol=0)
    assert not torch.allclose(states[0, 50:], states[1, 50:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontend": "cnn", "conv_norm": "group"}, "causal: needs frontend logmel"),
        ({"positions": "sinusoidal"}, "causal: needs positions"),
        ({"conv_kernel": [3, 1]}, "causal: needs conv_kernel"),
        ({"encoder_stride": 0}, "encoder_stride"),
        ({"attention_context": 0}, "attention_context"),
    ],
)
def test_what_a_causal_student_cannot_be_is_refused_by_its_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ds.named_size("tiny"), **changes)


def test_named_sizes_are_as_small_as_they_promise() -> None:
    millions = {name: sum(p.numel() for p in ds.build_student(name).parameters()) / 1e6 for name in ds.size_names()}
    assert millions.keys() == {"paper", "slim", "edge", "tiny"}
    assert round(millions["paper"]) == 27
    assert millions["slim"] < millions["paper"]
    assert millions["edge"] <= 6
    assert millions["tiny"] <= 1


def test_a_layer_that_is_shared_is_there_once_and_used_every_time(small_logmel: ds.StudentConfig) -> None:
    shared = ds.build_student(dataclasses.replace(small_logmel, shared=True, layers=3)).eval()
    apart = ds.build_student(dataclasses.replace(small_logmel, layers=3)).eval()
    assert len(shared.layers) == 1
    weights = shared.state_dict()
    copies = {name: weights[name.replace(f"layers.{name[7]}.", "layers.0.")] for name in apart.state_dict()}
    apart.load_state_dict(copies)
    wave = tone(0.7)[None]
    torch.testing.assert_close(shared(wave).last_hidden_state, apart(wave).last_hidden_state, atol=0, rtol=0)


def test_at_25_hz_two_frames_stand_for_one_state(small_cnn: ds.StudentConfig) -> None:
    output = ds.build_student(dataclasses.replace(small_cnn, encoder_stride=2)).eval()(tone(1.0)[None])
    states = output.last_hidden_state[0]
    assert len(states) == 49
    torch.testing.assert_close(states[0:48:2], states[1:48:2], atol=0, rtol=0)


def test_log_mel_equals_whispers_feature_extractor() -> None:
    from transformers import WhisperFeatureExtractor

    wave = tone(3.0)
    expected = WhisperFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    padded = torch.nn.functional.pad(wave, (0, 480_000 - len(wave)))[None]
    mel, lengths = LogMel(80)(padded, torch.tensor([480_000]))
    assert lengths.tolist() == [3000]
    torch.testing.assert_close(mel.transpose(1, 2), expected, atol=1e-5, rtol=0)


def test_a_saved_student_is_the_same_student(student: ds.Student, tmp_path: Path) -> None:
    ds.save_student(student, tmp_path / "a folder")
    again = ds.load_student(tmp_path / "a folder")
    assert again.config == student.config
    modes = {file.stat().st_mode for file in (tmp_path / "a folder").iterdir()}
    assert len(modes) == 1  # weights that others may read as they may the configuration
    wave = tone(1.0)[None]
    torch.testing.assert_close(again(wave).predictions, student(wave).predictions, atol=0, rtol=0)


def _damage(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3}, "config.json: width: unknown key"),
        ({"frontend": "mfcc"}, "config.json: frontend"),
        ({"heads": 5}, "config.json: heads"),
        ({"model_type": "hubert"}, "config.json: model_type"),
        ({"hidden_size": 32}, "model.safetensors: does not fit"),
    ],
)
def test_a_wrong_student_folder_is_one_clear_line(
    small_cnn: ds.StudentConfig, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path)
    _damage(tmp_path, **values)
    with pytest.raises(ds.UserError, match=message) as error:
        ds.load_student(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_weights_are_refused(small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ds.UserError, match=r"model\.safetensors"):
        ds.load_student(tmp_path)


@pytest.mark.parametrize("lengths", [[0, 10], [10], [10, 4_001]])
def test_impossible_lengths_are_refused(small_cnn: ds.StudentConfig, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        ds.build_student(small_cnn)(torch.zeros(2, 4_000), torch.tensor(lengths))


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="paper"):
        ds.build_student("huge")


def test_importing_the_package_needs_torch_alone() -> None:
    code = (
        "import sys, distilled_student as ds; ds.build_student;"
        "print([m for m in ('s3prl','transformers','lhotse','torchaudio','omegaconf') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
