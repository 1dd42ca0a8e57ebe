"""Enrolment, verification and identification in `distilled_student.onnx`, on the models that ship."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soxr

from distilled_student import onnx
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.onnx import Calibration, Enrolment, Model

VOICES = ("af_heart", "am_adam", "bf_emma")
CALIBRATION = Calibration(
    {"bias": -7.0, "cosine": 20.0},
    {0.001: {"bias": 0.7}, 0.01: {"bias": 0.6}, 0.05: {"bias": 0.5}},
    {"clips": (1, 5), "enrolled_seconds": (0.5, 20.0), "seconds": (0.5, 10.0)},
)


@pytest.fixture(scope="module")
def model() -> Model:
    model = onnx.load("tiny")
    model.calibration = CALIBRATION
    return model


@pytest.fixture(scope="module")
def clips() -> dict[str, list[np.ndarray]]:
    """Five utterances ``(samples,)`` of at least 0.6 s of each voice."""
    found = {}
    for voice in VOICES:
        audio = read_voice(voice)
        long = [clip for clip in read_index() if clip.voice == voice and clip.samples >= 9_600]
        found[voice] = [audio[clip.start : clip.start + clip.samples] for clip in long[:5]]
    return found


def test_an_enrolment_has_the_mean_vector_the_number_of_clips_and_their_seconds(
    model: Model, clips: dict[str, list[np.ndarray]]
) -> None:
    wavs = clips["af_heart"][:3]
    enrolment = model.enrol(wavs)
    total = sum(model.embed(wav) for wav in wavs)
    np.testing.assert_allclose(np.asarray(enrolment), total / np.sqrt(total @ total), atol=1e-6)
    assert (enrolment.clips, enrolment.seconds) == (3, pytest.approx(sum(map(len, wavs)) / 16_000))
    assert model.enrol(enrolment) is enrolment
    assert (model.enrol(wavs[0]).clips, model.enrol(wavs[0]).seconds) == (1, len(wavs[0]) / 16_000)
    added = model.enrol([model.enrol(wavs[:2]), wavs[2]])
    assert added[1:] == (3, pytest.approx(enrolment.seconds), *enrolment[3:])
    assert 0.999 < float(added.vector @ enrolment.vector) > float(model.enrol([wavs[0], wavs[2]]).vector @ enrolment)
    of_vectors = model.enrol(np.stack([model.embed(wav) for wav in wavs]))
    assert of_vectors.clips == 3 and math.isnan(of_vectors.seconds)
    np.testing.assert_allclose(of_vectors.vector, enrolment.vector, atol=1e-6)
    np.testing.assert_allclose(model.embed(wavs[0]) @ enrolment, model.embed(wavs[0]) @ enrolment.vector)


def test_samples_of_16_bits_and_floats_of_any_precision_are_one_voice(
    model: Model, clips: dict[str, list[np.ndarray]]
) -> None:
    wav = clips["am_adam"][0]
    integers = np.round(wav * 32767).astype(np.int16)
    swapped = integers.astype(">i2"), wav.astype(">f4")
    for other in (integers, *swapped, wav.astype(np.float64), (integers / 32768).tolist()):
        assert model.similarity(wav, other) > 0.99
    for length in (1, 100, 1_599, 1_601):
        assert -1 <= model.similarity(wav[:length], integers[:length]) <= 1.001


def test_similarity_is_the_cosine_of_two_embeddings(model: Model, clips: dict[str, list[np.ndarray]]) -> None:
    a, b = clips["af_heart"][0], clips["am_adam"][0]
    expected = float(model.embed(a) @ model.embed(b))
    for left in (a, model.embed(a), model.enrol(a)):
        assert model.similarity(left, b) == pytest.approx(expected, abs=1e-6)


def test_the_operating_point_decides_what_is_accepted(model: Model, clips: dict[str, list[np.ndarray]]) -> None:
    wav, enrolment = clips["af_heart"][0], model.enrol(clips["af_heart"][1:4])
    cosine = model.similarity(wav, enrolment)
    for share, fitted in ((0.001, 0.7), (0.01, 0.6), (0.05, 0.5)):
        found = model.verify(wav, enrolment, false_accepts=share)
        needed = pytest.approx(20.0 * fitted - 7.0)
        assert found == (cosine >= fitted, pytest.approx(20.0 * cosine - 7.0), pytest.approx(cosine), (), needed)
    assert model.verify(wav, enrolment) == model.verify(wav, enrolment, 0.01)
    assert model.verify(wav, clips["af_heart"][1:4]) == model.verify(wav, enrolment)
    with pytest.raises(ValueError, match=r"false_accepts: 0\.2: this model has thresholds"):
        model.verify(wav, enrolment, 0.2)
    for share in (None, "1%", 0, 1.5, math.nan):
        for method, enrolled in ((model.verify, enrolment), (model.identify, {"Ana": enrolment})):
            with pytest.raises(ValueError, match=f"^false_accepts: {share}: expected a number above 0 and up to 1$"):
                method(wav, enrolled, share)
    with pytest.raises(ValueError, match="threshold: is not a number"):
        model.verify(wav, enrolment, threshold=math.nan)


def test_a_length_that_calibration_has_not_seen_is_said(model: Model, clips: dict[str, list[np.ndarray]]) -> None:
    wav = clips["af_heart"][0]
    (note,) = model.verify(wav[:4_000], [wav]).notes
    assert "length of the utterance is 0.25 s: the calibration was fitted with 0.50 s to 10.00 s" in note
    (note,) = model.verify(wav, [wav] * 6).notes
    assert "number of enrolled clips is 6: the calibration was fitted with 1 to 5" in note


def test_the_most_similar_speaker_is_identified_or_nobody(model: Model, clips: dict[str, list[np.ndarray]]) -> None:
    enrolled = {voice: model.enrol(wavs[1:]) for voice, wavs in clips.items()}
    for voice, wavs in clips.items():
        cosines = {name: model.similarity(wavs[0], enrolment) for name, enrolment in enrolled.items()}
        best = max(cosines, key=cosines.__getitem__)
        # a third of the share for each of three speakers
        needed = CALIBRATION.threshold(0.01 / 3, onnx.Condition(4, 4.0, 1.0))
        found = model.identify(wavs[0], enrolled)
        assert found.name == (best if cosines[best] >= needed else None)
        assert found.cosine == pytest.approx(cosines[best]) and found.notes == ()
        assert best == voice
    assert model.identify(clips["am_adam"][0], {"bf_emma": enrolled["bf_emma"]}).name is None
    (note,) = model.identify(clips["am_adam"][0], {f"{i}": enrolled["bf_emma"] for i in range(20)}).notes
    assert note == "with 20 enrolled speakers up to 0.02 of other people's utterances may get a name, not 0.01"
    with pytest.raises(ValueError, match="enrolments: nobody is enrolled"):
        model.identify(clips["am_adam"][0], {})


def test_a_file_without_operating_points_decides_by_its_ratio_and_says_so(clips: dict[str, list[np.ndarray]]) -> None:
    model = onnx.load("tiny")
    if model.calibration.shares:
        model.calibration = Calibration.from_metadata({"sv_slope": "17.0", "sv_offset": "-6.7"})
    found = model.verify(clips["af_heart"][0], clips["af_heart"][1:])
    assert found.accepted == (found.ratio >= 0) and "no thresholds for stated shares of false accepts" in found.notes[0]
    assert model.verify(clips["af_heart"][0], clips["af_heart"][1:], threshold=99.0) == (False, *found[1:3], (), 99.0)


def test_an_enrolment_of_another_model_is_refused(model: Model, clips: dict[str, list[np.ndarray]]) -> None:
    other = Enrolment(np.ones(7, np.float32) / np.sqrt(7).astype(np.float32), 1, 2.0)
    with pytest.raises(ValueError, match="has 7 numbers, the embeddings of this model have 192: enrol the speaker"):
        model.verify(clips["af_heart"][0], other)


def test_a_speaker_whom_edge_has_enrolled_is_refused_by_tiny_in_utterances_and_streams(
    clips: dict[str, list[np.ndarray]],
) -> None:
    edge, tiny = onnx.load("edge"), onnx.load("tiny")
    clip, other = clips["af_heart"][0], edge.enrol(clips["af_heart"][1:])
    assert edge.stream().model.fingerprint == other.model == edge.fingerprint
    stream = tiny.stream()
    for attempt in (
        lambda: tiny.verify(clip, other),
        lambda: tiny.verify(other, clip),
        lambda: tiny.identify(clip, {"Ana": other}),
        lambda: tiny.similarity(clip, other),
        lambda: tiny.enrol([clip, other]),
        lambda: stream.listen(clip, owner=other),
        lambda: stream.listen(clip, speakers={"Ana": other}),
    ):
        with pytest.raises(ValueError, match="is of another model: enrol the speaker with this model"):
            attempt()


@pytest.mark.parametrize("rate", [8_000, 11_025])
def test_a_recording_of_a_lower_sampling_rate_is_of_nobody_and_says_why(
    rate: int, model: Model, clips: dict[str, list[np.ndarray]]
) -> None:
    low = [soxr.resample(soxr.resample(clip, 16_000, rate), rate, 16_000).clip(-1, 1) for clip in clips["af_heart"]]
    owner = model.enrol(low[1:])
    for utterance in (low[0], model.enrol(low[0])):
        found, named = model.verify(utterance, owner), model.identify(utterance, {"Ana": owner})
        assert not found.accepted and named.name is None and named.nearest == "Ana"
        for notes in (found.notes, named.notes):
            assert any(re.match(r"not accepted: nothing above \d\.\d kHz", note) for note in notes)
        assert not model.verify(utterance, owner, threshold=-99.0).accepted
    assert model.verify(clips["af_heart"][0], clips["af_heart"][1:], threshold=-99.0).accepted


def test_a_stream_of_a_lower_sampling_rate_is_of_nobody(clips: dict[str, list[np.ndarray]]) -> None:
    model = onnx.load("tiny")
    stream, owner = model.stream(), model.enrol(clips["af_heart"])

    def said_by_owner(samples: np.ndarray) -> list[bool]:
        stream.reset()
        accepted = []
        for _ in stream.hops([samples]):
            accepted.append(stream.is_from(owner, 0.05))
        return accepted

    speech = np.concatenate(clips["af_heart"])
    low = soxr.resample(soxr.resample(speech, 16_000, 8_000), 8_000, 16_000).clip(-1, 1)
    assert any(said_by_owner(speech)) and not any(said_by_owner(low)[10:])


def test_an_utterance_of_more_than_60_seconds_is_refused_in_one_line_before_it_is_encoded(model: Model) -> None:
    samples, word = np.full(61 * 16_000, 0.1, np.float32), np.full(16_000, 0.1, np.float32)
    attempts = (
        lambda: model.spot(samples),
        lambda: model.embed(samples),
        lambda: model.enrol([word, samples]),
        lambda: model.verify(samples, word),
        lambda: model.similarity(word, samples),
        lambda: model.identify(samples, {"Ana": model.enrol(word)}),
        lambda: model.enrol_word([samples]),
    )
    for attempt in attempts:
        with pytest.raises(
            ValueError, match=r"samples: 61\.0 s: .* at most 60 s: cut it, or use `Model.stream`"
        ) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_error_of_onnxruntime_is_one_line_that_names_the_file() -> None:
    def run(outputs: object, inputs: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6\n  Failed to allocate memory")

    model = onnx.load("tiny")
    model.session = SimpleNamespace(run=run)
    with pytest.raises(ValueError, match=r"utterance\.onnx: onnxruntime failed \(.* : 6 Failed to allocate memory\)"):
        model.embed(np.full(16_000, 0.1, np.float32))


def test_an_enrolled_utterance_is_compared_as_the_utterance_is(
    model: Model, clips: dict[str, list[np.ndarray]]
) -> None:
    owner, utterance = model.enrol(clips["af_heart"][:3]), clips["af_heart"][3]
    assert model.verify(model.enrol(utterance), owner) == model.verify(utterance, owner)
    people = {"Ana": owner, "Ben": model.enrol(clips["am_adam"][:3])}
    assert model.identify(model.enrol(utterance), people) == model.identify(utterance, people)


def test_models_have_fingerprints_and_the_two_files_of_one_model_have_the_same(tmp_path: Path) -> None:
    tiny, edge = onnx.load("tiny"), onnx.load("edge")
    shown = r"<Model .*tiny/utterance.onnx: of utterances; keywords: .* stop.*; embeddings of 192 numbers>"
    assert re.fullmatch(shown, repr(tiny))
    assert tiny.fingerprint == tiny.stream().model.fingerprint != edge.fingerprint
    assert onnx.load("tiny").fingerprint == tiny.fingerprint
