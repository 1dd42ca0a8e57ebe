"""The student network: sizes, shapes, padding, gradients and causality."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tone

import distilled_student as ds
from distilled_student.checkpoints.foreign_config import config_to_hubert
from distilled_student.student.lengths import mask_if_padded


def test_padding_never_changes_a_result(student_variant: ds.Student) -> None:
    lengths = torch.tensor([24_000, 9_999, 5_121, 401, 100])
    waveforms = torch.randn(5, 24_000)  # noise in the padding must not change a result either
    for i, n in enumerate(lengths):
        waveforms[i, :n] = tone(int(n) / 16_000 + 0.01, seed=i)[:n]
    with torch.no_grad():
        batch = student_variant(waveforms, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = student_variant(waveforms[i : i + 1, :n])
            frames = int(alone.lengths[0])
            assert int(batch.lengths[i]) == frames
            for together, single in zip(batch.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(together[i, :frames], single[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.predictions[i, :, :frames], alone.predictions[0], atol=1e-5, rtol=0)


def test_padding_gets_no_gradient(student_variant: ds.Student) -> None:
    waveforms = torch.randn(2, 8_000, requires_grad=True)
    output = student_variant(waveforms, torch.tensor([8_000, 4_000]))
    (output.last_hidden_state.square().sum() + output.predictions[1, :, : output.lengths[1]].sum()).backward()
    assert waveforms.grad[1, 4_000:].abs().max() == 0
    assert waveforms.grad[1, :4_000].abs().max() > 0


def test_output_has_the_documented_shapes(small_cnn: ds.StudentConfig) -> None:
    output = ds.build_student(small_cnn)(torch.randn(3, 16_000))
    assert [tuple(h.shape) for h in output.hidden_states] == [(3, 49, 16)] * 3
    assert output.last_hidden_state is output.hidden_states[-1]
    assert tuple(output.predictions.shape) == (3, 2, 49, 16)
    assert output.lengths.tolist() == [49] * 3


def test_the_paper_student_has_the_published_number_of_parameters() -> None:
    student = ds.build_student("paper")
    counts = {part: sum(p.numel() for p in student.get_submodule(part).parameters()) for part in ("", "predictions")}
    assert counts["predictions"] == 3_543_552
    assert counts[""] - counts["predictions"] == 23_492_224
    assert round(counts[""] / 1e6, 2) == 27.04


def test_the_paper_student_as_a_hubert_model_has_the_published_number_of_parameters() -> None:
    from transformers import HubertConfig, HubertModel

    with torch.device("meta"):  # shapes are enough
        model = HubertModel(HubertConfig(**config_to_hubert(ds.named_size("paper"))))
    # 768 more than ours: the embedding of masked frames, which HubertModel uses in pre-training only
    assert model.masked_spec_embed.numel() == 768
    assert model.num_parameters() == 23_492_992


def test_a_change_of_weights_changes_the_next_result(student_variant: ds.Student) -> None:
    wave = tone(0.5)[None]
    with torch.no_grad():
        before = student_variant(wave).last_hidden_state
        for parameter in student_variant.parameters():
            parameter.mul_(1.1)
        changed = student_variant(wave).last_hidden_state
    assert not torch.allclose(before, changed)
    without_cache = student_variant(wave).last_hidden_state  # with gradients, nothing computed from weights is reused
    torch.testing.assert_close(without_cache, changed, atol=1e-5, rtol=0)


def test_later_audio_does_not_change_earlier_frames_of_a_causal_student() -> None:
    torch.manual_seed(0)
    student, waves = ds.build_student("tiny").eval(), torch.stack([tone(2.0, seed=i) for i in range(2)])
    waves[1, :16_000] = waves[0, :16_000]
    with torch.no_grad():
        states = student(waves).last_hidden_state
    torch.testing.assert_close(states[0, :50], states[1, :50], atol=1e-6, rtol=0)
    assert not torch.allclose(states[0, 50:], states[1, 50:])


def test_a_shared_layer_exists_once_and_is_used_for_every_layer(small_logmel: ds.StudentConfig) -> None:
    shared = ds.build_student(dataclasses.replace(small_logmel, shared=True, layers=3)).eval()
    separate = ds.build_student(dataclasses.replace(small_logmel, layers=3)).eval()
    assert len(shared.layers) == 1
    weights = shared.state_dict()
    copies = {name: weights[name.replace(f"layers.{name[7]}.", "layers.0.")] for name in separate.state_dict()}
    separate.load_state_dict(copies)
    wave = tone(0.7)[None]
    torch.testing.assert_close(shared(wave).last_hidden_state, separate(wave).last_hidden_state, atol=0, rtol=0)


def test_with_encoder_stride_2_each_hidden_state_is_given_twice(small_cnn: ds.StudentConfig) -> None:
    output = ds.build_student(dataclasses.replace(small_cnn, encoder_stride=2)).eval()(tone(1.0)[None])
    states = output.last_hidden_state[0]
    assert len(states) == 49
    torch.testing.assert_close(states[0:48:2], states[1:48:2], atol=0, rtol=0)


@pytest.mark.parametrize("lengths", [[0, 10], [10], [10, 4_001]])
def test_impossible_lengths_are_refused(small_cnn: ds.StudentConfig, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        ds.build_student(small_cnn)(torch.zeros(2, 4_000), torch.tensor(lengths))


def test_a_mask_is_where_the_frames_are_also_in_an_exported_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (lambda: False, lambda: True):
        monkeypatch.setattr(torch.compiler, "is_exporting", function)
        mask = mask_if_padded(torch.tensor([1, 2]), 3, torch.device("meta"))
        assert mask is not None and mask.device.type == "meta"


def test_the_package_needs_torch_alone_and_a_saved_student_torch_and_safetensors_alone(
    small_cnn: ds.StudentConfig, tmp_path: Path
) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path)
    heavy = ("s3prl", "transformers", "lhotse", "torchaudio", "soundfile", "omegaconf", "yaml")
    code = (
        "import sys, torch, distilled_student as ds; ds.build_student;"
        "print([m for m in ('s3prl','transformers','lhotse','torchaudio','omegaconf') if m in sys.modules]);"
        f"ds.load_student({str(tmp_path)!r})(torch.zeros(1, 4000));"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "[]"]
