"""The calibration of speakers by length and number of enrolled clips, on embeddings whose error is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trees import tasks, write_tone

from distilled_student.multitask import speaker_calibration as C
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.resume import saved_calibrations
from distilled_student.multitask.speaker_calibration import Piece, Recording
from distilled_student.onnx.calibration import Calibration, Condition

SIZE = 24


def simulated(speakers: int, seed: int) -> tuple[list[Piece], np.ndarray]:
    """Pieces of speakers, and embeddings: a direction of the speaker and noise, which is smaller in longer pieces."""
    rng, pieces, embeddings = np.random.default_rng(seed), [], []
    for speaker in range(speakers):
        direction = rng.normal(size=SIZE)
        for half in (0, 1):
            for length, count in C.PIECES.items():
                for number in range(count):
                    words = frozenset({f"word{(number + 4 * half) % 5}"}) if length == 1 else frozenset()
                    piece = Piece("one", f"s{speaker}", half, length, (), 0, int(16_000 * length), words)
                    pieces.append(piece)
                    embeddings.append(direction + rng.normal(size=SIZE) * 1.3 / math.sqrt(length))
    return pieces, np.stack(embeddings)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return C.fit(C.make_trials(*simulated(40, 0)))


def test_thresholds_accept_the_stated_share_of_other_speakers_in_each_condition(calibration: Calibration) -> None:
    pieces, embeddings = simulated(60, 1)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    by_condition: dict[tuple[int, float], list[bool]] = {}
    for number in range(0, len(pieces), 5):  # a plain loop, with the class that a device uses
        speaker = pieces[number].speaker
        for clips in C.CLIPS:
            own = [p for p, piece in enumerate(pieces) if piece.speaker != speaker and piece.length == 1][
                number % 50 :: 97
            ]
            for place in own[:25]:
                same = [p for p in range(len(pieces)) if pieces[p].speaker == pieces[place].speaker]
                enrolled = [p for p in same if pieces[p].length == 1 and pieces[p].half == 0][:clips]
                mean = unit[enrolled].mean(axis=0)
                condition = Condition(clips, float(clips), pieces[number].samples / 16_000, None)
                cosine = float(mean @ unit[number] / np.linalg.norm(mean))
                accepted = cosine >= calibration.threshold(0.05, condition)
                by_condition.setdefault((clips, pieces[number].length), []).append(accepted)
    assert len(by_condition) == 9
    for condition, accepted in by_condition.items():
        assert 0.015 < np.mean(accepted) < 0.11, (condition, len(accepted))


def test_ratios_have_almost_the_least_cost_on_other_speakers_and_lengths_matter(calibration: Calibration) -> None:
    trials = C.make_trials(*simulated(60, 1))
    ratios = C.ratios(calibration, trials)
    for place in range(0, len(ratios), 997):
        values = (trials.clips[place], trials.enrolled_seconds[place], trials.seconds[place])
        word = {0.5: None, 0.0: False, 1.0: True}[trials.same_word[place]]
        expected = calibration.ratio(trials.cosine[place], Condition(int(values[0]), *map(float, values[1:]), word))
        assert ratios[place] == pytest.approx(expected)
    order, prior = np.argsort(ratios), C.TARGET_PRIOR
    ratios, weight, is_target = ratios[order], trials.weight[order], trials.target[order] == 1
    # of a threshold below all ratios, and of one above each of them
    miss = np.append(0, np.cumsum(weight * is_target))
    false = (weight * ~is_target).sum() - np.append(0, np.cumsum(weight * ~is_target))
    costs = prior * miss + (1 - prior) * false
    assert costs[np.searchsorted(ratios, math.log((1 - prior) / prior))] <= 1.1 * costs.min()
    short, long = Condition(1, 1.0, 1.0), Condition(5, 50.0, 10.0)
    assert calibration.ratio(0.9, long) > calibration.ratio(0.9, short)
    assert calibration.ratio(0.3, long) < calibration.ratio(0.3, short)
    levels = [calibration.threshold(share, short) for share in C.SHARES]
    assert levels == sorted(levels), "fewer false accepts need a larger cosine"
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_with_the_mean_voice_two_kinds_of_speech_each_have_the_stated_share_of_false_accepts() -> None:
    """One kind has embeddings nearer to the mean voice, so that the cosines of its speakers are larger."""

    def both_kinds(seed: int) -> tuple[list[Piece], np.ndarray]:
        pieces, embeddings = simulated(22, seed)
        others, moved = simulated(22, seed + 10)
        others = [piece._replace(source="two", speaker=f"t{piece.speaker}") for piece in others]
        return pieces + others, np.concatenate([embeddings, moved + 4 * np.eye(SIZE)[0]])

    of_fit, of_test = both_kinds(0), both_kinds(1)
    calibrations = [C.fit(C.make_trials(*of_fit, known), known) for known in (None, C.mean_voice(*of_fit))]
    assert calibrations[0].mean_voice == () and calibrations[1].mean_voice[0] > 0.9
    pieces, embeddings = of_test
    unit, rng = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), np.random.default_rng(0)
    shares = np.zeros((2, 2))
    for calibration_number, calibration in enumerate(calibrations):
        for kind, source in enumerate(("one", "two")):  # a plain loop, with the class that a device uses
            places = [place for place, piece in enumerate(pieces) if piece.source == source]
            pairs = [(a, b) for a, b in rng.choice(places, (1500, 2)) if pieces[a].speaker != pieces[b].speaker]
            for a, b in pairs:
                lengths = pieces[a].samples / 16_000, pieces[b].samples / 16_000
                condition = calibration.condition(unit[b], unit[a], 1, *lengths)
                is_accepted = unit[a] @ unit[b] >= calibration.threshold(0.05, condition)
                shares[calibration_number, kind] += is_accepted / len(pairs)
    assert shares[0].max() > 2 * shares[0].min(), "without it the kinds differ"
    assert ((shares[1] > 0.025) & (shares[1] < 0.09)).all(), shares


def test_the_mean_voice_is_the_mean_of_the_sources_whose_pieces_weigh_the_same() -> None:
    pieces, embeddings = simulated(25, 0)
    others = [piece._replace(source="two", speaker=f"t{piece.speaker}") for piece in pieces[:40]]
    moved = embeddings[:40] + 4 * np.eye(SIZE)[0]
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in (embeddings, moved)]
    expected = sum(of_source.mean(axis=0) for of_source in unit)
    found = C.mean_voice(pieces + others, np.concatenate([embeddings, moved]))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_few_speakers_give_no_mean_voice() -> None:
    assert C.mean_voice(*simulated(C.MEAN_VOICE_SPEAKERS - 1, 0)) is None
    pieces, embeddings = simulated(C.MEAN_VOICE_SPEAKERS, 0)
    rows = iter(embeddings)
    found = C.calibrate(pieces, lambda piece: next(rows))
    np.testing.assert_array_equal(found.mean_voice, C.mean_voice(pieces, embeddings))


def test_pieces_of_the_two_halves_have_no_recording_in_common_and_the_stated_lengths(tmp_path: Path) -> None:
    recordings = []
    for speaker in ("a", "b", "c"):
        for number in range(9):
            file = write_tone(tmp_path / speaker / f"{number}.wav", 200 + 10 * number, 1.0 if number else 4.0, number)
            recordings.append(Recording(file, speaker, f"word{number}"))
    pieces = C.make_pieces("kws", recordings)
    for speaker in "abc":
        halves = [
            {p for piece in pieces if (piece.speaker, piece.half) == (speaker, h) for p in piece.paths} for h in (0, 1)
        ]
        assert halves[0] and halves[1] and not halves[0] & halves[1]
    for piece in pieces:
        assert (
            len(piece.load()) == piece.samples <= 16_000 * piece.length and piece.samples >= 0.4 * 16_000 * piece.length
        )
        assert len(piece.words) == len(piece.paths)
    assert {piece.length for piece in pieces if piece.samples == 16_000 * piece.length} >= {1.0, 3.0}
    assert C.make_pieces("kws", recordings) == pieces
    assert {piece.speaker for piece in C.make_pieces("kws", recordings, seconds=1)} < {"a", "b", "c"}
    assert C.make_pieces("kws", recordings[:1]) == [] and C.calibrate([], lambda piece: np.ones(2)) is None


def test_speakers_of_different_sources_are_not_compared() -> None:
    pieces, embeddings = simulated(3, 0)
    other = [piece._replace(source="two", speaker=f"{piece.speaker} again") for piece in pieces]
    trials, alone = (
        C.make_trials(pieces + other, np.concatenate([embeddings, embeddings])),
        C.make_trials(pieces, embeddings),
    )
    assert len(trials.cosine) == 2 * len(alone.cosine) and trials.weight.sum() == pytest.approx(2)


def frames(wavs: list) -> list[torch.Tensor]:
    blocks = [torch.as_tensor(wav)[: len(wav) // 160 * 160].view(-1, 160) for wav in wavs]
    return [torch.fft.rfft(block).abs()[:, :6] for block in blocks]


def make_expert(folder: Path) -> DownstreamExpert:
    torch.manual_seed(0)
    settings = {"tasks": tasks(folder)}
    return DownstreamExpert(6, 160, settings, str(folder), config="my.yaml", seed=1, runner={}, mode="evaluate").eval()


def test_the_calibration_is_in_the_checkpoint_and_in_the_metadata_and_older_checkpoints_load(tmp_path: Path) -> None:
    expert = make_expert(tmp_path)
    before = expert.state_dict()
    with torch.no_grad():
        expert.calibrate_speakers_on_features(frames)
    found = expert.tasks["sv"].speaker_calibration
    assert found is not None and set(found.ratio_weights) <= set(C.RATIO_TERMS)
    assert json.loads(expert.tasks["sv"].device_metadata(None)["speaker_calibration"]) == json.loads(found.to_json())
    loaded = make_expert(tmp_path)
    loaded.load_state_dict(expert.state_dict())
    assert loaded.tasks["sv"].speaker_calibration == found
    loaded.load_state_dict(before)
    assert loaded.tasks["sv"].speaker_calibration is None and not saved_calibrations(before["_extra_state"])
