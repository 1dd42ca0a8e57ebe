"""Owner-and-word trials against plain loops: which trials there are, their scores, and their error rates."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from distilled_student.multitask import owner_trials as T
from distilled_student.multitask.owner_trials import SpokenClip

LABELS = {"yes": 2, "no": 3, "go": 4}
KEYWORDS = sorted(LABELS.values())


def some_clips(speakers: int = 6, takes: int = 2) -> list[SpokenClip]:
    clips = []
    for speaker in range(speakers):
        for word in [*LABELS, "bed", "cat"]:
            for take in range(takes):
                key, label = f"{word}/s{speaker}_nohash_{take}.wav", LABELS.get(word, 1)
                clips.append(SpokenClip(len(clips), key, label, word in LABELS, word, f"s{speaker}", 16_000))
    return clips


def some_outputs(clips: list[SpokenClip], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings near a direction of the speaker, and log-probabilities of classes that favour the right one."""
    rng = np.random.default_rng(seed)
    directions = {name: rng.normal(size=8) for name in sorted({clip.speaker for clip in clips})}
    embeddings = np.stack([directions[clip.speaker] + 1.2 * rng.normal(size=8) for clip in clips])
    scores = rng.normal(size=(len(clips), 5)) + 2 * np.eye(5)[[clip.label for clip in clips]]
    return embeddings, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("enrolled", T.ENROLLED)
def test_each_pair_of_enrolment_and_clip_is_one_trial_without_the_enrolled_clips(enrolled: int) -> None:
    clips = some_clips()
    trials = T.make_trials(clips, KEYWORDS, enrolled)
    pairs = list(zip(trials.enrolment.tolist(), trials.clip.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    used: dict[str, list[int]] = {}
    for number, group in enumerate(trials.enrolled):
        owner = {clips[clip].speaker for clip in group}
        assert len(owner) == 1 and len(set(group)) == enrolled
        used.setdefault(*owner, []).extend(group)
        compared = [clip for enrolment, clip in pairs if enrolment == number]
        own = {c.index for c in clips if c.speaker in owner} - set(group)
        assert own <= set(compared), "all other clips of the owner"
        assert not set(group) & set(compared) and len(compared) - len(own) == min(T.OTHERS, 50)
    assert all(len(set(of_owner)) == len(of_owner) for of_owner in used.values()), "enrolments share no clip"
    for (enrolment, clip), label, same in zip(pairs, trials.labels, trials.same_word, strict=True):
        group = trials.enrolled[enrolment]
        assert label == (clips[clip].speaker == clips[group[0]].speaker)
        assert same == (clips[clip].word in {clips[c].word for c in group})
    again = T.make_trials(clips, KEYWORDS, enrolled)
    assert np.array_equal(again.clip, trials.clip) and np.array_equal(again.expected, trials.expected)


def test_a_keyword_is_asked_for_itself_and_for_another_keyword_and_another_word_for_a_keyword_only() -> None:
    clips = some_clips()
    trials = T.make_trials(clips, KEYWORDS, 3)
    asked = Counter(trials.asked.tolist())
    for pair, clip in enumerate(trials.clip):
        assert asked[pair] == (2 if clips[clip].is_keyword else 1)
    for pair, expected, quadrant in zip(trials.asked, trials.expected, trials.quadrant, strict=True):
        clip = clips[trials.clip[pair]]
        name = ("owner" if trials.owner[pair] == trials.speaker[pair] else "other") + "_"
        name += "keyword" if clip.label == expected else "other_word"
        assert T.QUADRANTS[quadrant] == name and expected in KEYWORDS
    assert set(trials.quadrant) == {0, 1, 2, 3}


def loop_rates(scores: np.ndarray, quadrant: np.ndarray, threshold: float) -> tuple[float, float]:
    """False accepts as the mean of three rates, and misses, at a threshold."""
    accepted = [0, 0, 0, 0]
    for score, kind in zip(scores, quadrant, strict=True):
        accepted[kind] += score >= threshold
    rates = [count / max(1, sum(quadrant == kind)) for kind, count in enumerate(accepted)]
    return sum(rates[1:]) / 3, 1 - rates[0]


def test_owner_and_word_scores_and_error_rates_are_those_of_a_plain_loop() -> None:
    clips = some_clips()
    embeddings, words = some_outputs(clips)
    trials = T.make_trials(clips, KEYWORDS, 3)
    cosines = T.owner_cosines(trials, embeddings)
    scores = T.owner_and_word_scores(trials, words, 8 * cosines - 4)
    for place in range(0, len(scores), 7):
        pair = trials.asked[place]
        enrolled = [embeddings[clip] for clip in trials.enrolled[trials.enrolment[pair]]]
        unit = [embedding / math.dist(embedding, [0] * 8) for embedding in enrolled]
        mean, tested = sum(unit) / 3, embeddings[trials.clip[pair]]
        cosine = sum(mean * tested) / math.sqrt(sum(mean * mean)) / math.sqrt(sum(tested * tested))
        owner, word = 1 / (1 + math.exp(-(8 * cosine - 4))), math.exp(words[trials.clip[pair], trials.expected[place]])
        assert cosines[pair] == pytest.approx(cosine) and scores[place] == pytest.approx(math.log(owner * word))
    found = T.target_only(trials, scores)
    curve = [loop_rates(scores, trials.quadrant, threshold) for threshold in sorted(set(scores))]
    for percent in T.FALSE_ACCEPTS:
        misses = min([1.0, *(miss for false, miss in curve if false <= percent / 100)])
        assert found[f"miss_at_{percent}"] == pytest.approx(100 * misses)
        low, high = found[f"miss_at_{percent}_interval"]
        assert low <= found[f"miss_at_{percent}"] <= high
    nearest = min(abs(false - miss) for false, miss in curve)
    false, miss = next(rates for rates in curve if abs(rates[0] - rates[1]) == nearest)
    assert found["eer"] == pytest.approx(100 * (false + miss) / 2, abs=100 * nearest)
    assert found["trials"] == {name: sum(trials.quadrant == k) for k, name in enumerate(T.QUADRANTS)}
    false = sum(found["accepted_at_1"][name] for name in T.QUADRANTS[1:]) / 3
    assert false <= 1 + 1e-9 and found["accepted_at_1"]["owner_keyword"] == pytest.approx(100 - found["miss_at_1"])


def test_either_the_word_or_the_owner_can_veto() -> None:
    clips = some_clips(speakers=2, takes=2)
    trials = T.make_trials(clips, KEYWORDS, 1)
    certain, impossible = np.zeros((len(clips), 5)), np.full((len(clips), 5), -50.0)
    sure, never = np.full(len(trials.clip), 50.0), np.full(len(trials.clip), -50.0)
    assert np.allclose(T.owner_and_word_scores(trials, certain, sure), 0, atol=1e-9)
    assert (T.owner_and_word_scores(trials, impossible, sure) < -49).all()
    assert (T.owner_and_word_scores(trials, certain, never) < -49).all()


def test_verification_reports_same_and_other_words_apart() -> None:
    clips = some_clips()
    embeddings, _ = some_outputs(clips)
    trials = T.make_trials(clips, KEYWORDS, 1)
    cosines = T.owner_cosines(trials, embeddings)
    found = T.verification(trials, cosines, 8 * cosines - 4)
    same = [bool(s) and bool(t) for s, t in zip(trials.same_word, trials.labels, strict=True)]
    assert found["same_word"]["target_trials"] == sum(same)
    assert found["same_word"]["target_trials"] + found["other_word"]["target_trials"] == trials.labels.sum()
    assert found["act_dcf_0.01"] >= found["min_dcf_0.01"] and found["eer_interval"][0] <= found["eer"]
    assert "cllr" not in T.verification(trials, cosines, None)


def test_there_are_no_trials_of_one_speaker_or_of_too_few_clips() -> None:
    clips = some_clips(speakers=1)
    assert T.make_trials(clips, KEYWORDS, 1) is None
    assert T.make_trials(some_clips(speakers=2, takes=1), KEYWORDS, 5) is None
    assert T.make_trials([], KEYWORDS, 1) is None


def test_a_spotter_of_one_keyword_has_no_trials_of_the_owner_with_another_keyword() -> None:
    clips = [clip for clip in some_clips() if clip.word == "yes"]
    assert set(T.make_trials(clips, [2], 1).quadrant) == {T.OWNER_KEYWORD, T.OTHER_KEYWORD}
