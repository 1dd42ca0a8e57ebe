"""Teachers that are no student's network: their layers and frames are those of `transformers`, or they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from conftest import tone
from helpers.references import FORMS, SMALL, perturbed, save_fairseq, save_transformers, transformers_model
from torch import Tensor, nn

import distilled_student as ds
from distilled_student.distillation.targets import Teacher
from distilled_student.teachers.open import open_teacher
from distilled_student.teachers.s3prl_encoder import S3prlEncoder

SQUEEZED = {**SMALL, "squeeze_factor": 2, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
DATA2VEC = {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}


def model_of(family: str, **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **keys})
    return perturbed(getattr(transformers, f"{family}Model")(config))


def saved(model: nn.Module, folder: Path, normalize: bool = False) -> Path:
    return save_transformers(model, folder, normalize)


def last_before_the_adapter(model: nn.Module, wave: Tensor) -> Tensor:
    """What the encoder's last layer and its final norm give, taken from inside the model."""
    found = []
    hook = model.encoder.register_forward_hook(lambda *args: found.append(args[-1]))
    model(wave)
    hook.remove()
    return found[0].last_hidden_state if hasattr(found[0], "last_hidden_state") else found[0][0]


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("Wav2Vec2", {}),
        ("Wav2Vec2", STABLE),
        ("WavLM", {}),
        ("WavLM", STABLE),
        ("Data2VecAudio", DATA2VEC),
        ("Wav2Vec2Conformer", {"position_embeddings_type": "rotary"}),
    ],
)
@torch.no_grad()
def test_layers_of_a_teacher_with_an_adapter_are_those_before_the_adapter(
    family: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    model, wave = model_of(family, add_adapter=True, **keys), tone(1.0)[None]
    expected = model(wave, output_hidden_states=True)
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(16_000), add_adapter=False))
    found = open_teacher(saved(model, tmp_path))(wave)
    assert expected.last_hidden_state.shape[1] < frames  # the adapter shortens
    assert [state.shape[1] for state in found.hidden_states] == [frames] * 4
    assert found.lengths.tolist() == [frames]
    for ours, theirs in zip(found.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.hidden_states[-1], last_before_the_adapter(model, wave), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["SEW", "SEWD"])
@torch.no_grad()
def test_frames_of_sew_are_those_of_its_squeezed_layers(family: str, tmp_path: Path) -> None:
    model, wave = model_of(family, **SQUEEZED), tone(1.0)[None]
    layers = model.encoder.layers if family == "SEW" else model.encoder.encoder.layer
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *a: outputs.append(a[-1])) for layer in layers]
    model(wave)
    for hook in hooks:
        hook.remove()
    outputs = [output if isinstance(output, Tensor) else output[0] for output in outputs]
    teacher = open_teacher(saved(model, tmp_path))
    found = teacher(wave)
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(16_000))) // 2
    assert (teacher.frame_shift, teacher.num_layers, found.lengths.tolist()) == (640, 3, [frames])
    assert [state.shape[1] for state in found.hidden_states] == [frames] * 4
    for ours, theirs in zip(found.hidden_states[1:], outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 240, 399, 400, 719, 720, 1040])
@pytest.mark.parametrize(("family", "keys"), [("WavLM", {}), ("SEW", SQUEEZED), ("Data2VecAudio", DATA2VEC)])
def test_an_utterance_shorter_than_a_frame_is_one_frame(
    family: str, keys: dict[str, Any], samples: int, tmp_path: Path
) -> None:
    teacher = Teacher(open_teacher(saved(model_of(family, **keys), tmp_path)), [1, 3])
    first, shift = (720, 640) if family == "SEW" else (400, 320)
    states, lengths = teacher(torch.stack([tone(1.0), tone(1.0)]), torch.tensor([16_000, samples]))
    assert int(lengths[1]) == max(1, (samples - first) // shift + 1)
    assert states.isfinite().all()


def test_an_s3prl_upstream_takes_an_utterance_of_15_ms_as_one_of_50_ms() -> None:
    encoder, wave = open_teacher("fbank"), tone(1.0)[None, :240]
    encoded, expected = encoder(wave), encoder(torch.nn.functional.pad(wave, (0, 560)))
    assert encoded.lengths.tolist() == expected.lengths.tolist()
    assert torch.equal(encoded.hidden_states[0], expected.hidden_states[0])
    assert encoded.hidden_states[0].isfinite().all()


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_an_s3prl_teacher_gives_its_cnn_a_gradient(family: str, tmp_path: Path) -> None:
    file = save_fairseq(tmp_path / "converted.pt", family, SMALL, FORMS["group-post"])
    from s3prl import hub

    upstream = getattr(hub, f"{family}_local")(ckpt=str(file))
    encoder, reference = S3prlEncoder(upstream).train(), open_teacher(file).train()
    for model in (encoder, reference):  # without dropout, so that both gradients can be compared
        for module in model.modules():
            for name in ("p", "dropout", "dropout_p", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        model(tone(1.0)[None]).hidden_states[-1].square().sum().backward()
    found = encoder.upstream.model.feature_extractor.conv_layers[0][0].weight.grad
    expected = reference.student.frontend.layers[0].conv.weight.grad
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("form", ["group-post", "layer-pre"])
def test_without_a_preprocessor_only_models_with_layer_norm_in_the_front_end_are_normalised(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers_model("hubert", **SMALL, **FORMS[form])
    model.save_pretrained(tmp_path)
    student = ds.load_student(tmp_path)
    assert student.config.normalize is (form == "layer-pre")
    assert "no preprocessor_config.json" in caplog.text
    wave = tone(0.5) + 0.2
    values = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt() if form == "layer-pre" else wave
    with torch.no_grad():
        expected = model(values[None]).last_hidden_state
    torch.testing.assert_close(student(wave[None]).last_hidden_state, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["Hubert", "WavLM"])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_model_of_audio_at_another_rate_is_refused(family: str, file: str, tmp_path: Path) -> None:
    saved(model_of(family), tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"sampling_rate": 8000}
    (tmp_path / "preprocessor_config.json").unlink()
    content = settings if file.startswith("pre") else {"feature_extractor": settings}
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ds.UserError, match=rf"{file}.*: sampling_rate: 8000"):
        open_teacher(tmp_path)


def test_a_converted_checkpoint_of_audio_at_another_rate_is_refused(tmp_path: Path) -> None:
    file = save_fairseq(tmp_path / "converted.pt", "hubert", SMALL, FORMS["group-post"])
    content = torch.load(file, weights_only=False)
    torch.save({**content, "task_cfg": {**content["task_cfg"], "sample_rate": 8000}}, file)
    with pytest.raises(ds.UserError, match="task_cfg: sample_rate: 8000"):
        ds.load_student(file)


def test_a_teacher_with_a_missing_weight_is_refused(tmp_path: Path) -> None:
    file = saved(model_of("WavLM"), tmp_path) / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["encoder.layers.1.attention.k_proj.weight"]
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ds.UserError, match=r"weights are missing: encoder.layers.1.attention.k_proj.weight"):
        open_teacher(tmp_path)


def test_a_text_model_is_no_teacher(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=10
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ds.UserError, match="'bert' is not a speech encoder of waveforms"):
        open_teacher(tmp_path)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("WavLMForCTC", {"vocab_size": 8}),
        ("WavLMForXVector", {"tdnn_dim": [8, 8, 8, 8, 12], "xvector_output_dim": 8}),
        ("WavLMForSequenceClassification", {"use_weighted_layer_sum": True}),
        ("UniSpeechSatForPreTraining", {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}),
        ("Data2VecAudioForCTC", {**DATA2VEC, "vocab_size": 8}),
        ("SEWForCTC", {**SQUEEZED, "vocab_size": 8}),
        ("SEWDForSequenceClassification", SQUEEZED),
        ("Wav2Vec2ConformerForAudioFrameClassification", {}),
    ],
)
@torch.no_grad()
def test_another_encoder_with_a_head_is_read_without_it(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name.partition('For')[0]}Config")(**{**SMALL, **keys})
    model, wave = perturbed(getattr(transformers, name)(config)), tone(1.0)[None]
    save_transformers(model, tmp_path)
    output = getattr(model, model.base_model_prefix)(wave, output_hidden_states=True)
    last = output.hidden_states[-1] if name.startswith("SEW") else output.last_hidden_state
    expected = [*output.hidden_states[:-1], last]
    found = open_teacher(tmp_path)(wave).hidden_states
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
