"""Clips, steering and choice of features of made bottlenecks."""

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis.feature_cards import (
    FACTORS,
    Features,
    Source,
    read_codes,
    steered,
)
from speechbrain_sim.analysis.moments import top_moments
from speechbrain_sim.bottlenecks.base import NONE, Bottleneck
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.decoders import DECODERS, make_decoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.report.page import Gap

#: a burst of a tone in each recording, in seconds
BURSTS = [(0.31, 0.37), (0.82, 0.94), (0.05, 0.12)]


class Loud(Bottleneck):
    """A unit per channel, which is active where the channel is above -3."""

    def encode(self, x):
        return (x + 3).clamp(min=0)

    def decode(self, codes):
        return codes - 3

    def loss(self, x, following=None):
        raise NotImplementedError


def make_source(labels=True, geometry=True):
    """Recordings with a burst each, as log-mel; labels are 1 in the bursts."""
    encoder, wavs, rows, owner, y = LogMel(), [], [], [], []
    rng = np.random.default_rng(0)
    for i, burst in enumerate(BURSTS):
        time = np.arange(16000) / 16000
        wav = 1e-3 * rng.normal(size=16000)
        here = (time >= burst[0]) & (time < burst[1])
        wav += here * np.sin(2 * np.pi * 1000 * time)
        wavs.append(wav.astype(np.float32))
        rows.append(encoder(torch.tensor(wavs[-1])[None])["logmel"].mean[0])
        owner += [i] * len(rows[-1])
        frames = np.arange(len(rows[-1])) / 100
        y.append((frames >= burst[0]) & (frames < burst[1]))
    y = np.concatenate(y).astype(int)
    y[:3] = NO_LABEL
    known = {"phones": (["SIL", "AY"], y)}
    known["speaker"] = (["7", "8", "9"], np.array(owner))
    return Source(
        torch.cat(rows),
        np.array(owner),
        encoder.frame_geometry("logmel") if geometry else None,
        ["a", "b", "c"],
        lambda i, start, stop: wavs[i][start:stop],
        known if labels else {},
    )


@pytest.fixture(scope="module")
def loud():
    return Features(Loud(80, 80, NONE), make_source(), names={3: "AY"})


@pytest.fixture(scope="module", params=DECODERS)
def decoded(request):
    """An encoder of a kind of decoder, its decoder, and an SAE."""
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=6, context_channels=4).eval()
    decoder = make_decoder(encoder, "module3", request.param).eval()
    sae = SparseAutoencoder(6, 24, k=5).eval()
    h = encoder(torch.randn(1, 9600) / 9)["module3"].mean[0].detach()
    sae.set_units(h.mean(0), h.std(0))
    return decoder, sae, h


def test_the_marked_moment_is_where_the_burst_sounds(loud):
    unit = int(loud.codes.max(0).toarray().argmax())
    z = loud.activations(unit)
    moments = top_moments(z, loud.utterance, 3, 1)
    assert sorted(moment.utterance for moment in moments) == [0, 1, 2]
    for moment in moments:
        clip, (start, stop) = loud.clip(moment, z), BURSTS[moment.utterance]
        assert len(clip.wav) in (9440, 9600)  # the last frame: at the end
        loudest = np.abs(clip.wav) > 0.1
        ends = np.flatnonzero(loudest)[[0, -1]] / 16000
        assert clip.span == pytest.approx(ends, abs=0.02)
        peak = clip.curve[0][clip.curve[1].argmax()]
        assert ends[0] - 0.01 <= peak <= ends[1] + 0.01
        name = loud.source.names[moment.utterance]
        assert clip.label.startswith(f"AY, {7 + moment.utterance}, {name} at ")
        assert start - 0.02 <= float(clip.label.split()[-2]) <= stop


def test_short_recordings_are_shown_whole():
    source = make_source()
    kept = np.flatnonzero(np.arange(303) % 101 < 20)
    labels = {n: (c, y[kept]) for n, (c, y) in source.labels.items()}
    source = source._replace(
        rows=source.rows[kept], utterance=source.utterance[kept], labels=labels
    )
    features = Features(Loud(80, 80, NONE), source)
    catalogue = features.catalogue("codes", {}, 2, 9)
    for clip in catalogue.cards[0].moments:
        assert len(clip.wav) == 20 * 160 and clip.curve.shape == (2, 20)
        assert 0 <= clip.span[0] < clip.span[1] <= 0.2


def test_steering_is_the_formula(decoded):
    decoder, sae, h = decoded
    span, unit = slice(20, 30), int(sae.encode(h)[25].argmax())
    predicted, mels, samples = steered(sae, decoder, h, unit, span, [1.0, 0.0])
    moved = h.clone()
    column = sae.decoder.weight[:, unit] * sae.std
    moved[span] -= sae.encode(h)[span, unit, None] * column
    expected = decoder(torch.stack([h, moved]), samples, as_sound=False)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)
    change = np.abs(mels[1] - mels[0]).max(1)
    assert change[20:30].max() > 1e-4 and change[:5].max() < 1e-5


def test_the_sounds_of_steering_differ(decoded):
    decoder, sae, h = decoded
    source = make_source(False)._replace(
        rows=h, utterance=np.zeros(len(h), int), geometry=(160, 20.0)
    )
    features = Features(sae, source, decoder)
    catalogue = features.catalogue("module3.sae", {}, 3, 2)
    for card in catalogue.cards:
        before, *others = card.steered
        assert [clip.label for clip in card.steered] == list(FACTORS)
        assert before.change is None
        for clip in others:
            assert np.abs(clip.wav - before.wav).max() > 1e-6
            assert clip.change.shape[1] == 80
        assert card.scores["effect (dB)"] > 0
    effects = [features.effects[card.number] for card in catalogue.cards]
    assert np.nanmax(features.effects) in effects


def test_many_activations_are_of_every_nth_recording():
    source = make_source()
    dense = Loud(80, 80).encode(source.rows).numpy()
    codes, kept = read_codes(Loud(80, 80, NONE), source)
    assert len(kept) == 303
    np.testing.assert_array_equal(codes.toarray(), dense)
    codes, kept = read_codes(Loud(80, 80, NONE), source, codes.nnz // 2 + 1)
    assert set(source.utterance[kept]) == {0, 2}
    np.testing.assert_array_equal(codes.toarray(), dense[kept])


def test_further_scores_are_shown_and_chosen_by(loud):
    stable = np.full(80, np.nan)
    usable = np.flatnonzero((loud.firing > 0.02) & (loud.firing < 0.5))
    stable[usable[-1]] = 0.9
    scores = {"F1": stable, "stability": stable}
    catalogue = loud.catalogue("codes", scores, 2, 1)
    assert usable[-1] in [card.number for card in catalogue.cards]
    shown = [card.scores["stability"] for card in catalogue.cards]
    assert set(shown) == {None, 0.9}  # json has no NaN
    assert "by stability" in catalogue.caption
    assert "by F1" not in catalogue.caption
    assert "no decoder" in catalogue.steering
    assert all(card.steered == [] for card in catalogue.cards)


def test_names_are_those_given_and_the_best_of_each_comes_first():
    features = Features(Loud(80, 80, NONE), make_source())
    usable = np.flatnonzero((features.firing > 0.02) & (features.firing < 0.5))
    a, b, c, unnamed = usable[:4].tolist()
    features.names = {a: "AY", b: "AY", c: "T"}
    gain = np.full(80, np.nan)
    gain[[a, b, c]] = 0.5, 0.4, 0.1
    catalogue = features.catalogue("codes", {"gain of F1": gain}, 9, 1)
    shown = {card.number: card.name for card in catalogue.cards}
    assert [*shown] == [a, c, b] and unnamed not in shown
    assert [*shown.values()] == ["AY", "T", "AY"]
    assert "by gain of F1 (one per class), in turn" in catalogue.caption
    assert "in training frames" in catalogue.caption


def test_the_effect_of_a_moment_beyond_the_sound_is_a_number(decoded):
    decoder, sae, h = decoded
    source = make_source(False)._replace(
        rows=h, utterance=np.zeros(len(h), int), geometry=(160, 20.0)
    )
    features = Features(sae, source, decoder)
    steer = features.steer
    features.steer = lambda *given: (*steer(*given)[:3], (9.0, 9.1))
    features.choose({"mean": features.firing}, 1)
    assert np.isfinite(features.effects).any()


def test_a_mean_per_recording_has_no_moment_inside_it(monkeypatch):
    monkeypatch.setattr("speechbrain_sim.analysis.moments.FEWEST", 1)
    source = make_source(geometry=False)
    source = source._replace(
        rows=torch.tensor([[0.0, -9], [-9, -9], [-9, 0]]),
        utterance=np.arange(3),
        labels={"speaker": (["7", "8"], np.array([0, 1, 1]))},
    )
    features = Features(Loud(2, 2, NONE), source, object(), {0: "7"})
    catalogue = features.catalogue("codes", {}, 2, 2)
    first = catalogue.cards[0]
    assert first.name == "7" and first.number == 0
    (clip,) = first.moments
    assert clip.label == "7, first 1 s of a" and clip.span is clip.curve is None
    assert "not decoded" in catalogue.steering and first.steered == []
    assert "3 recordings" in catalogue.caption


def test_codes_that_are_all_dead_are_a_gap():
    source = make_source()
    gap = Features(Loud(80, 80, NONE), source._replace(rows=source.rows - 99))
    gap = gap.catalogue("codes", {}, 2, 2)
    assert isinstance(gap, Gap) and "No feature fires" in gap.reason
