"""Teachers: each family against its own library, padding, alignment, and teachers that cannot be loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from conftest import tone
from helpers.references import FORMS, SMALL, save_fairseq, save_transformers, transformers_model

import distilled_student as ds
from distilled_student.distillation.targets import Teacher, align
from distilled_student.teachers.encoders import StudentEncoder
from distilled_student.teachers.open import open_teacher
from distilled_student.teachers.s3prl_encoder import S3prlEncoder

STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
FAMILIES = {
    "hubert-base": (transformers.HubertConfig, transformers.HubertModel, {}),
    "hubert-large": (transformers.HubertConfig, transformers.HubertModel, STABLE),
    "wav2vec2-base": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model, {}),
    "wav2vec2-large": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model, STABLE),
    "wavlm-base": (transformers.WavLMConfig, transformers.WavLMModel, {}),
    "data2vec": (
        transformers.Data2VecAudioConfig,
        transformers.Data2VecAudioModel,
        {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2},
    ),
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_equals_its_own_library(family: str, normalize: bool, tmp_path: Path) -> None:
    config, model_class, extra = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config(**{**SMALL, **extra})).eval()
    model.save_pretrained(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    extractor.save_pretrained(tmp_path)
    wave = tone(1.3)
    values = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    teacher = open_teacher(tmp_path)
    with torch.no_grad():
        output = model(values, output_hidden_states=True)
        found = teacher(wave[None])
    # in pre-norm models of transformers 5, only last_hidden_state is taken after the final norm
    expected = [*output.hidden_states[:-1], output.last_hidden_state]
    assert teacher.num_layers == 3
    assert teacher.frame_shift == 320
    for ours, theirs in zip(found.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["WhisperEncoder", "WhisperModel", "WhisperForConditionalGeneration"])
def test_whispers_encoder_equals_its_own_library(name: str, tmp_path: Path) -> None:
    from transformers.models.whisper import modeling_whisper

    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        vocab_size=100,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=4,
    )
    torch.manual_seed(0)
    model = getattr(modeling_whisper, name)(config).eval()
    model.save_pretrained(tmp_path)
    encoder = model if name == "WhisperEncoder" else model.get_encoder()
    wave = tone(2.0)
    features = transformers.WhisperFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(features.input_features, output_hidden_states=True).hidden_states
        found = open_teacher(tmp_path)(torch.nn.functional.pad(wave, (0, 480_000 - len(wave)))[None])
    for ours, theirs in zip(found.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["hubert-base", "wavlm-base"])
def test_padding_never_changes_a_teachers_result(family: str, tmp_path: Path) -> None:
    config, model_class, extra = FAMILIES[family]
    torch.manual_seed(0)
    model_class(config(**{**SMALL, **extra})).save_pretrained(tmp_path)
    teacher = Teacher(open_teacher(tmp_path), [1, 3])
    lengths = torch.tensor([16_000, 7_000, 7_000])
    waveforms = torch.stack([tone(1.0, seed=i) for i in range(3)])
    states, frames = teacher(waveforms, lengths)
    for i, n in enumerate(lengths.tolist()):
        alone, count = teacher(waveforms[i : i + 1, :n])
        assert int(frames[i]) == int(count[0])
        torch.testing.assert_close(states[i, :, : count[0]], alone[0], atol=1e-5, rtol=1e-5)


def test_an_s3prl_upstream_is_a_teacher() -> None:
    wave = tone(1.0)
    encoded = open_teacher("fbank")(torch.stack([wave, wave]), torch.tensor([16_000, 8_000]))
    alone = open_teacher("fbank")(wave[None, :8_000])
    assert encoded.lengths.tolist() == [len(open_teacher("fbank")(wave[None]).hidden_states[0][0]), alone.lengths[0]]
    torch.testing.assert_close(encoded.hidden_states[0][1, : alone.lengths[0]], alone.hidden_states[0][0])


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("form", ["group-post", "layer-pre"])
def test_a_converted_checkpoint_gives_the_same_results_as_in_s3prl(family: str, form: str, tmp_path: Path) -> None:
    file = save_fairseq(tmp_path / "converted.pt", family, SMALL, FORMS[form], normalize=True)
    from s3prl import hub

    ours, theirs = open_teacher(file), S3prlEncoder(getattr(hub, f"{family}_local")(ckpt=str(file))).eval()
    waveforms, lengths = torch.stack([tone(1.0), tone(1.0, seed=1)]), torch.tensor([16_000, 9_000])
    with torch.inference_mode():
        found, expected = ours(waveforms, lengths), theirs(waveforms, lengths)
    assert found.lengths.tolist() == expected.lengths.tolist()
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert all(torch.equal(theirs.weights()[name], value) for name, value in ours.weights().items())


def test_a_hubert_with_settings_that_no_student_has_can_be_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**SMALL, conv_pos_batch_norm=True)).eval()
    save_transformers(model, tmp_path)
    wave = tone(1.0)[None]
    with torch.inference_mode():
        expected = model(wave).last_hidden_state
        found = open_teacher(tmp_path)(wave).hidden_states[-1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_name_in_the_local_cache_of_the_hub_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "models--someone--hubert"
    folder = save_transformers(transformers_model("hubert", **SMALL), cache / "snapshots" / "0123abcd")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wave = tone(1.0)[None]
    found, expected = open_teacher("someone/hubert")(wave), ds.load_student(folder)(wave)
    assert torch.equal(found.hidden_states[-1], expected.last_hidden_state)


def test_a_teacher_stays_in_eval_mode_and_has_no_gradients(small_cnn: ds.StudentConfig) -> None:
    teacher = Teacher(StudentEncoder(ds.build_student(small_cnn)), [2])
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    states, _ = teacher(torch.randn(1, 8_000, requires_grad=True))
    assert not states.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("form", [{}, {"norm_first": True}, {"shared": True}])
def test_layers_after_the_last_target_are_not_computed(small_cnn: ds.StudentConfig, form: dict[str, bool]) -> None:
    student = ds.build_student(dataclasses.replace(small_cnn, layers=3, **form)).eval()
    wave = tone(0.5)[None]
    with torch.no_grad():
        expected = student(wave).hidden_states
    teacher = Teacher(StudentEncoder(student), [1, 2])
    assert torch.equal(teacher(wave)[0], torch.stack(expected[1:3], dim=1))
    assert len(teacher.encoder(wave).hidden_states) == 3  # front end and two layers


@pytest.mark.parametrize("form", [{}, STABLE])
def test_layers_of_a_wavlm_after_the_last_target_are_not_computed(form: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_transformers(transformers.WavLMModel(transformers.WavLMConfig(**{**SMALL, **form})), tmp_path)
    wave = tone(0.5)[None]
    with torch.no_grad():
        expected = open_teacher(tmp_path)(wave).hidden_states
    for layers in ([1, 2], [1, 3]):
        teacher = Teacher(open_teacher(tmp_path), layers)
        torch.testing.assert_close(teacher(wave)[0], torch.stack([expected[n] for n in layers], dim=1))
        assert len(teacher.encoder(wave).hidden_states) == max(layers) + 1


def test_a_target_layer_that_the_teacher_does_not_have_is_refused(small_cnn: ds.StudentConfig) -> None:
    with pytest.raises(ds.UserError, match="layers 1 to 2"):
        Teacher(StudentEncoder(ds.build_student(small_cnn)), [3])


def test_frames_of_a_slower_teacher_are_repeated_and_frames_of_a_faster_one_are_skipped() -> None:
    states = torch.arange(5.0)[None, None, :, None]
    slower, lengths = align(states, torch.tensor([5]), 640, torch.tensor([9]), 320, 9)
    assert slower[0, 0, :, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert lengths.tolist() == [9]
    faster, lengths = align(states, torch.tensor([5]), 160, torch.tensor([3]), 320, 3)
    assert faster[0, 0, :, 0].tolist() == [0, 2, 4]
    assert lengths.tolist() == [3]


def test_a_difference_of_one_frame_is_cut() -> None:
    states = torch.zeros(1, 1, 50, 4)
    aligned, lengths = align(states, torch.tensor([49]), 320, torch.tensor([50]), 320, 50)
    assert aligned.shape[2] == 50
    assert lengths.tolist() == [49]


@pytest.mark.parametrize(("shift", "frames"), [(480, 33), (320, 40)])
def test_frames_that_cannot_be_aligned_are_an_error(shift: int, frames: int) -> None:
    with pytest.raises(ValueError, match=r"apart|multiple"):
        align(torch.zeros(1, 1, 50, 4), torch.tensor([frames]), shift, torch.tensor([50]), 320, 50)


@pytest.mark.parametrize("name", ["facebook/hubert-base-ls960", "no-such-teacher"])
def test_the_error_for_an_unavailable_teacher_says_what_to_do_instead(name: str) -> None:
    with pytest.raises(ds.UserError, match="give the folder instead") as error:
        open_teacher(name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def _damaged(folder: Path, name: str, content: bytes) -> Path:
    config, model_class, extra = FAMILIES["hubert-base"]
    model_class(config(**{**SMALL, **extra})).save_pretrained(folder)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"torn"), ("config.json", b"{"), ("config.json", b"null"), ("config.json", b'{"a": 1}')],
)
def test_the_error_for_a_damaged_teacher_folder_names_the_folder(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="cannot be loaded") as error:
        open_teacher(_damaged(tmp_path, name, content))
    assert str(tmp_path) in str(error.value)
    assert "another machine" not in str(error.value)
