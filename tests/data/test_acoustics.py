"""Acoustic labels: planted voices, SpeechBrain's own, Praat's, bins."""

import csv
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from speechbrain.lobes.features import VocalFeatures

from speechbrain_sim.data import acoustics
from speechbrain_sim.data.acoustics import (
    LABELS,
    LONG,
    acoustic_labels,
    contours,
    measure,
    quantile_bins,
)
from speechbrain_sim.data.labels import HOP, WINDOW, num_labels


def voice(pitch, level=0.1, noise=0.001, seed=0):
    """A pulse train of a pitch that is given for each sample, in noise."""
    pitch = torch.as_tensor(pitch, dtype=torch.float64)
    phase = 2 * torch.pi * pitch.cumsum(0) / 16000
    tone = sum((n * phase).sin() / n for n in range(1, 8))
    generator = torch.Generator().manual_seed(seed)
    hiss = torch.randn(len(pitch), generator=generator)
    return (level * tone + noise * hiss).float()


@pytest.mark.parametrize("hertz", [85, 140, 320])
def test_a_planted_pitch_is_measured(hertz):
    silent = (
        torch.randn(4000, generator=torch.Generator().manual_seed(1)) / 2000
    )
    wav = torch.cat([silent, voice([hertz] * 8000), silent])
    values = measure(wav)
    assert abs(12 * np.log2(values["pitch"] / hertz)) < 0.4
    assert values["pitch_range"] < 0.5
    assert values["duration"] == 1
    pitch = contours(wav).pitch
    voiced = torch.arange(len(pitch)) * HOP + WINDOW / 2
    voiced = (voiced > 4000) & (voiced < 12000)
    wrong = pitch.isnan() == voiced
    assert wrong.sum() <= 6  # at the edges, within half a window


def test_a_rise_of_pitch_and_level_is_followed():
    octave = torch.linspace(0, 1, 16000)
    wav = voice(120 * 2**octave) * (1 + octave)
    found = contours(wav)
    centres = HOP * torch.arange(num_labels(len(wav))) + WINDOW // 2
    inner = slice(3, -3)
    expected = 120 * 2 ** octave[centres]
    semitones = 12 * (found.pitch / expected).log2()
    assert semitones[inner].abs().max() < 0.5
    level = found.intensity[inner] - found.intensity[3]
    expected = 20 * ((1 + octave[centres]) / (1 + octave[centres[3]])).log10()
    assert (level - expected[inner]).abs().max() < 0.3
    assert measure(wav)["pitch_range"] == pytest.approx(12 * 0.8, abs=0.5)


def test_cues_follow_what_is_changed():
    wav = voice([150] * 8000)
    base, louder = measure(wav), measure(2 * wav)
    change = louder["intensity"] - base["intensity"]
    assert change == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert louder["pitch"] == base["pitch"]
    assert louder["harmonicity"] == pytest.approx(base["harmonicity"], abs=0.01)
    noisy = measure(voice([150] * 8000, noise=0.05))
    for name, sign in {"harmonicity": -1, "jitter": 1, "shimmer": 1}.items():
        assert sign * noisy[name] > sign * base[name]


def test_pitch_is_that_of_vocal_features():
    wav = voice(100 + 50 * torch.linspace(0, 1, 9000))
    found = contours(wav)
    side = (LONG - WINDOW) // 2
    padded = torch.nn.functional.pad(wav - wav.mean(), (side, side + HOP))
    features = VocalFeatures(
        min_f0_Hz=75,
        max_f0_Hz=600,
        window_size=LONG / 16000,
        sma_neighbors=1,
        log_scores=False,
    )
    f0, noise, jitter, shimmer = features(padded[None])[0, :, :4].T
    count = len(found.pitch)
    voiced = ~found.pitch.isnan()
    assert voiced.sum() > 40
    for ours, theirs in {
        "pitch": f0,
        "harmonicity": 1 - noise,
        "jitter": jitter,
        "shimmer": shimmer,
    }.items():
        one, other = getattr(found, ours)[voiced], theirs[:count][voiced]
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_long_recording_is_measured_in_pieces(monkeypatch):
    wav = voice(100 + 50 * torch.linspace(0, 1, 9000))
    whole = contours(wav)
    monkeypatch.setattr(acoustics, "_CHUNK", 7)
    for one, other in zip(contours(wav), whole, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("samples", [10, 399, 2000])
def test_silence_and_short_recordings_have_no_pitch_and_no_error(samples):
    values = measure(torch.zeros(samples))
    assert np.isnan(values["pitch"]) and np.isnan(values["jitter"])
    assert values["intensity"] == -100


def test_what_was_measured_is_kept_by_content(tmp_path, monkeypatch):
    rows = []
    for name, hertz in {"low": 100, "high": 200, "hiss": 0}.items():
        wav = voice([hertz] * 4000, noise=0.01 if hertz == 0 else 0.001)
        sf.write(tmp_path / f"{name}.wav", wav.numpy(), 16000)
        rows.append({"ID": name, "wav": f"$data_root/{name}.wav"})
    path = tmp_path / "manifests/train.csv"
    path.parent.mkdir()
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    labels = acoustic_labels(path, tmp_path)
    assert list(labels) == ["low", "high", "hiss"]
    assert [*labels["low"]] == list(LABELS)
    assert np.isnan(labels["hiss"]["pitch"])
    measured = []

    def counted(wav, source):
        measured.append(len(wav))
        return measure(wav, source)

    monkeypatch.setattr(acoustics, "measure", counted)
    again = acoustic_labels(path, tmp_path)
    assert not measured and again["low"] == labels["low"]
    # another recording under the same name is measured, and no other
    sf.write(tmp_path / "low.wav", voice([120] * 4800).numpy(), 16000)
    assert acoustic_labels(path, tmp_path)["low"]["duration"] == 0.3
    assert measured == [4800]
    with pytest.raises(ValueError, match="acoustics is 'opensmile', not one"):
        acoustic_labels(path, tmp_path, "opensmile")


def test_praat_agrees():
    pytest.importorskip("parselmouth")
    for hertz in (85, 140, 280):
        wav = voice(hertz * (1 + 0.1 * torch.linspace(-1, 1, 12000)))
        ours, praats = measure(wav), measure(wav, "praat")
        assert abs(12 * np.log2(ours["pitch"] / praats["pitch"])) < 0.3
        assert abs(ours["pitch_range"] - praats["pitch_range"]) < 0.6
        assert praats["intensity"] - ours["intensity"] == pytest.approx(
            93.98, abs=0.5
        )


def test_praat_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[praat\]"):
        measure(torch.zeros(4000), "praat")


def test_bins_are_those_of_the_training_part():
    rng = np.random.default_rng(0)
    train, values = rng.normal(size=101), 3 * rng.normal(size=500)
    values[7] = np.nan
    found = quantile_bins(train, values)
    ordered = sorted(train)
    for value, bin_ in zip(values, found, strict=True):
        below = [ordered[25], ordered[50], ordered[75]]  # quartiles of 101
        expected = -1 if np.isnan(value) else sum(value >= x for x in below)
        assert bin_ == expected
    assert {*found} == {-1, 0, 1, 2, 3}
    own = quantile_bins([*train, np.nan], train)
    assert np.bincount(own).tolist() == [25, 25, 25, 26]


@pytest.mark.parametrize(
    "train", [[], [1, 2, 3], [5.0] * 40, [1] * 30 + [2, 3, 4], [np.nan] * 9]
)
def test_bins_that_cannot_be_filled_are_refused(train):
    with pytest.raises(ValueError, match="pitch: .* do not fill 4 bins"):
        quantile_bins(train, [1.0], name="pitch")
