"""Augmentation: noise at the given ratio, reverberation and speed as their definitions, seeded results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.trees import write_tone

from distilled_student.common.effects import add_noise, at_lower_rate, limit_band, reverberate, synthetic_rir
from distilled_student.common.errors import UserError
from distilled_student.common.settings import typed
from distilled_student.multitask.augment import Augmentation, change_speed
from distilled_student.multitask.tasks.settings import AugmentSettings


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def wave(samples: int = 16_000) -> torch.Tensor:
    return 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(samples) / 16_000)


def test_augmentation_is_off_by_default() -> None:
    augment = Augmentation(AugmentSettings(), "F")
    assert augment(wave(), rng()).equal(wave()) and augment.speed(rng()) == 1.0


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_is_added_at_the_given_ratio(snr: float) -> None:
    noise = add_noise(wave(), torch.randn(16_000), snr) - wave()
    assert 10 * float(torch.log10(wave().square().mean() / noise.square().mean())) == pytest.approx(snr, abs=0.01)


def test_reverberation_is_a_convolution_that_keeps_length_and_loudness() -> None:
    rir = synthetic_rir(rng(), 0.3, 5.0)
    wet = reverberate(wave(), rir)
    want = np.convolve(wave().numpy(), rir.numpy())[:16_000]
    want *= np.sqrt(np.mean(wave().numpy() ** 2) / np.mean(want**2))
    np.testing.assert_allclose(wet.numpy(), want, atol=1e-4)
    assert -10 * float(torch.log10(rir[1:].square().sum())) == pytest.approx(5.0, abs=0.01)


def test_an_impulse_response_of_zeros_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 200)
    soundfile.write(tmp_path / "zeros.wav", np.zeros(1_000), 16_000)
    augment = Augmentation(AugmentSettings(reverb=1.0, rir_root=str(tmp_path)), "F")
    with pytest.raises(UserError, match=rf"{tmp_path}/zeros\.wav: an impulse response of zeros, .*: remove the file"):
        for seed in range(20):
            augment(wave(), rng(seed))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_an_impulse_response_of_any_scale_gives_the_same_speech(scale: float, tmp_path: Path) -> None:
    response = synthetic_rir(rng(), 0.3, 5.0).numpy()
    soundfile.write(tmp_path / "a.wav", scale * response, 16_000, subtype="FLOAT")
    want = np.convolve(wave().numpy().astype(np.float64), response)[:16_000]
    want *= np.sqrt(np.mean(wave().numpy() ** 2) / np.mean(want**2))
    wet = Augmentation(AugmentSettings(reverb=1.0, rir_root=str(tmp_path)), "F")(wave(), rng())
    np.testing.assert_allclose(wet.numpy(), want, atol=1e-5)


@pytest.mark.parametrize("frequency", [100.0, 300.0, 1000.0, 3400.0, 6000.0])
def test_a_band_has_the_gain_of_butterworth_filters(frequency: float) -> None:
    from scipy import signal

    sine = torch.sin(2 * torch.pi * frequency * torch.arange(16_000) / 16_000)
    found = limit_band(sine, 300.0, 3400.0)[4000:12_000].square().mean().sqrt() * 2**0.5
    band = [signal.butter(4, limit, kind, analog=True) for limit, kind in ((300.0, "high"), (3400.0, "low"))]
    gains = [abs(signal.freqs(*coefficients, [frequency])[1][0]) for coefficients in band]
    assert (
        float(found) == pytest.approx(gains[0] * gains[1], abs=2e-3) and len(limit_band(sine, 300.0, 3400.0)) == 16_000
    )


def test_a_band_limited_utterance_is_one_of_the_effects() -> None:
    settings = typed(AugmentSettings, {"band": 1.0, "band_low": [300, 300], "band_high": [3400, 3400]}, "F")
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(Augmentation(settings, "F")(noise, rng())).abs()
    assert float(spectrum[6000:].square().mean()) < 1e-2 * float(spectrum[1000:2000].square().mean())


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000])
def test_a_lower_rate_leaves_what_a_resampler_leaves(rate: int) -> None:
    import soxr

    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    found, want = at_lower_rate(noise, rate), soxr.resample(soxr.resample(noise.numpy(), 16_000, rate), rate, 16_000)
    spectra = [np.square(np.abs(np.fft.rfft(x[1000:15_000] * np.hanning(14_000)))) for x in (found.numpy(), want)]
    below, above = slice(0, int(0.9 * rate * 7 / 16)), slice(int(1.02 * rate * 7 / 16), 7_000)
    np.testing.assert_allclose(spectra[0][below].mean(), spectra[1][below].mean(), rtol=0.01)
    for spectrum in spectra:
        assert spectrum[above].mean() < 1e-8 * spectrum[below].mean()
    assert len(found) == len(noise)


def test_a_lower_rate_is_one_of_the_effects_and_half_of_its_clips_have_16_bits() -> None:
    augment = Augmentation(AugmentSettings(low_rate=1.0, rates=[8_000.0, 8_000.0]), "F")
    noise = 0.1 * torch.randn(4_000, generator=torch.Generator().manual_seed(0))
    clips = [augment(noise, rng(seed)) for seed in range(100)]
    assert sum(torch.equal(clip * 32768, torch.round(clip * 32768)) for clip in clips) == pytest.approx(50, abs=15)
    for clip in clips:
        spectrum = torch.fft.rfft(clip * torch.hann_window(4_000)).abs().square()
        assert float(spectrum[1_100:].mean()) < 1e-5 * float(spectrum[:900].mean())


def test_speed_changes_length_and_pitch() -> None:
    fast = change_speed(wave(), 1.1)
    assert len(fast) == pytest.approx(16_000 / 1.1, abs=2)
    peak = torch.fft.rfft(fast * torch.hann_window(len(fast))).abs().argmax() * 16_000 / len(fast)
    assert peak == pytest.approx(440 * 1.1, abs=2)


def test_other_speech_goes_before_an_utterance_at_the_given_loudness(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 90, 4.0)
    settings = AugmentSettings(past=1.0, past_root=str(tmp_path), past_seconds=[0.5, 1.5], past_db=[-4.0, -4.0])
    lengths = set()
    for seed in range(20):
        waveform, past = Augmentation(settings, "F").with_past(wave(), rng(seed))
        assert waveform[past:].equal(wave())
        assert 8_000 <= past <= 24_000 and past % 320 == 0  # whole frames of 20 ms
        ratio = waveform[:past].square().mean() / wave().square().mean()
        assert 10 * float(torch.log10(ratio)) == pytest.approx(-4.0, abs=0.01)
        lengths.add(past)
    assert len(lengths) > 10


def test_as_many_utterances_follow_other_speech_as_the_probability_says(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 90, 4.0)
    augment = Augmentation(AugmentSettings(past=0.3, past_root=str(tmp_path)), "F")
    pasts = [augment.with_past(wave(1_600), rng(seed))[1] for seed in range(300)]
    assert sum(past > 0 for past in pasts) == pytest.approx(90, abs=25)


def test_noise_and_gain_are_those_of_the_speech_before_too(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 90, 4.0)
    settings = AugmentSettings(past=1.0, past_root=str(tmp_path), past_db=[0.0, 0.0], gain=1.0, gain_db=[-6.0, -6.0])
    waveform, past = Augmentation(settings, "F").with_past(wave(), rng())
    torch.testing.assert_close(waveform[past:], wave() * 10 ** (-6 / 20))
    assert float(waveform[:past].square().mean()) == pytest.approx(float(waveform[past:].square().mean()), rel=1e-3)


def test_the_same_generator_gives_the_same_utterance(tmp_path: Path) -> None:
    write_tone(tmp_path / "n/a.wav", 90, 0.4)
    s = AugmentSettings(speed=1, reverb=1, noise=1, gain=1, noise_root=str(tmp_path / "n"))
    augment = Augmentation(s, "F")
    assert augment(wave(), rng(3)).equal(augment(wave(), rng(3)))
    assert not augment(wave(), rng(3)).equal(augment(wave(), rng(4)))
    assert augment.speed(rng()) in s.speed_factors


@pytest.mark.parametrize(
    "bad",
    [
        {"noise": 1.5},
        {"snr": [20.0, 0.0]},
        {"speed_factors": [9.0]},
        {"echo": 1},
        {"band_low": [0, 4000]},
        {"low_rate": 1.1},
        {"rates": [8000, 16000]},
        {"past": -0.1},
        {"past_seconds": [2.0, 1.0]},
        {"past_seconds": [0.0, 1.0]},
        {"past_db": [1.0]},
    ],
)
def test_a_wrong_setting_gives_one_line_with_the_key(bad: dict) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        typed(AugmentSettings, bad, "FILE")


def test_speech_before_utterances_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"past_root: past needs a folder of speech"):
        typed(AugmentSettings, {"past": 0.5}, "FILE")
    missing = AugmentSettings(past=0.5, past_root=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"F\.past_root: .*gone: no such folder"):
        missing.check_folders("F")
    with pytest.raises(UserError, match=r"F\.past_root: .*holds no audio files"):
        Augmentation(AugmentSettings(past=0.5, past_root=str(tmp_path)), "F")


def test_a_missing_noise_folder_is_named(tmp_path: Path) -> None:
    s = AugmentSettings(noise=1.0, noise_root=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"F\.noise_root: .*gone: no such folder"):
        Augmentation(s, "F")
