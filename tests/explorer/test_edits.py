"""Edits against closed forms, `traversals` and `SmoothInfoMax.steer`."""

import pytest
import torch

from speechbrain_sim.explorer.edits import Space, apply_edits, own_deviation
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.traversals import draw_prior, interpolate


def no():
    """Stops nothing."""


SPAN = [0.1, 0.2]  # frames 10 to 19 of module3, whose first is at 1.25 ms


@pytest.fixture(scope="module")
def space(coded, engine):
    a, b = (clip.id for clip in engine.clips)
    latents = {c: engine.latent("m0", c, "module3", no) for c in (a, b)}
    other = {"b": latents[b].mean[0], "a": latents[a].mean[0]}
    return Space(coded.encoder, "module3", latents[a], other.__getitem__)


def changed(space, *edits):
    return apply_edits(space, [*edits]).z


def test_interpolation_is_that_of_traversals_and_cuts_the_longer_one(space):
    a, b = space.other("a"), space.other("b")
    walk = interpolate(a[: len(b)], b, 5)
    for amount, expected in zip((0, 0.25, 0.5, 0.75, 1), walk, strict=True):
        edit = {"kind": "interpolate", "other": "b", "amount": amount}
        torch.testing.assert_close(changed(space, edit), expected)


def test_a_span_changes_its_frames_only(space):
    a, b = space.other("a"), space.other("b")
    edit = {"kind": "interpolate", "other": "b", "amount": 1, "span": SPAN}
    expected = torch.cat([a[:10], b[10:20], a[20:]])
    assert torch.equal(changed(space, edit), expected)
    for edit in (
        {"kind": "set", "dimension": 3, "deviations": 2},
        {"kind": "noise", "seed": 1},
        {"kind": "swap", "other": "b", "count": 64},
        {"kind": "features", "layer": "module3.sae", "features": {"7": 9.0}},
    ):
        still = changed(space, edit | {"span": SPAN}) == a
        assert still[:10].all() and still[20:].all(), edit
        assert not still[10:20].all(), edit


def test_a_dimension_is_set_in_deviations_of_the_clip_or_the_prior(space):
    x = space.latent
    edit = {"kind": "set", "dimension": 5, "deviations": -2}
    z = changed(space, edit)
    variance = (
        x.mean[0, :, 5].var(correction=0) + x.log_var[0, :, 5].exp().mean()
    )
    value = x.mean[0, :, 5].mean() - 2 * variance.sqrt()
    torch.testing.assert_close(z[:, 5], value.expand(len(z)))
    mean, deviation = own_deviation(x, 5)
    assert mean - 2 * deviation == pytest.approx(float(value), rel=1e-5)
    others = [d for d in range(64) if d != 5]
    assert torch.equal(z[:, others], x.mean[0][:, others])
    assert (changed(space, edit | {"of": "prior"})[:, 5] == -2).all()


def test_the_dimensions_that_differ_most_are_swapped(space):
    a, b = space.other("a"), space.other("b")
    a, edit = a[: len(b)], {"kind": "swap", "other": "b", "count": 3}
    z, swapped = apply_edits(space, [edit])
    most = (a.mean(0) - b.mean(0)).abs().topk(3).indices
    expected = a.clone()
    expected[:, most] = b[:, most]
    assert torch.equal(z, expected)
    assert torch.equal(swapped.start, a) and torch.equal(swapped.target, b)
    assert torch.equal(changed(space, edit | {"count": 64}), b)
    assert torch.equal(changed(space, edit | {"count": 0}), a)


def test_noise_is_a_draw_of_its_seed(space):
    z = [changed(space, {"kind": "noise", "seed": i}) for i in (1, 1, 2)]
    drawn = draw_prior(*z[0].shape, keyed_generator(1, "module3", "prior"))
    assert torch.equal(z[0], drawn) and torch.equal(z[0], z[1])
    assert not torch.equal(z[0], z[2])


@pytest.mark.parametrize(
    "layer", ["module3.sae", "module3.vsc", "module3.mean"]
)
@pytest.mark.parametrize("span", [None, SPAN])
def test_features_are_changed_as_steer_does(space, coded, engine, layer, span):
    first = next(iter(engine.clips))
    features = {"7": 3.0, "20": -1.0}
    edit = {"kind": "features", "layer": layer, "features": features}
    z = changed(space, edit | {"span": span})
    numbers = {int(n): value for n, value in features.items()}
    steered = coded.steer(first.read(), layer, numbers, span)
    sound = coded.decode(z[None], "module3", 10240)[0]
    torch.testing.assert_close(sound, steered.changed, atol=1e-3, rtol=0)
    assert not torch.allclose(steered.original, steered.changed, atol=1e-2)


def test_codes_are_edited_themselves(space, engine):
    first = next(iter(engine.clips)).id
    codes = engine.latent("m0", first, "module3.sae", no)
    of = space._replace(layer="module3.sae", latent=codes)
    edit = {"kind": "features", "layer": "module3.sae", "features": {"7": 3.0}}
    z = changed(of, edit)
    assert (z[:, 7] == 3).all()
    assert torch.equal(z[:, 8:], codes.mean[0, :, 8:])


def test_edits_follow_each_other_and_nothing_is_changed_in_place(space):
    before = space.latent.mean.clone()
    one = {"kind": "set", "dimension": 5, "deviations": 1}
    two = {"kind": "interpolate", "other": "b", "amount": 1}
    b = space.other("b")
    assert torch.equal(changed(space, one, two), b)
    assert not torch.equal(changed(space, two, one), b)
    assert torch.equal(space.latent.mean, before)
    assert torch.equal(changed(space), before[0])


FEATURES = {"kind": "features", "layer": "module3.sae"}
SET = {"kind": "set", "dimension": 1, "deviations": 1}


@pytest.mark.parametrize(
    "edit, sentence",
    [
        ({"kind": "shout"}, "one of interpolate"),
        ("set", "one of interpolate"),
        ({"kind": ["set"]}, "one of interpolate"),
        (SET | {"dimension": 64}, "from 0 to 63"),
        (SET | {"dimension": 1.5}, "whole number"),
        (SET | {"dimension": True}, "dimension is True"),
        (SET | {"deviations": 3.1}, "from -3.0 to 3.0"),
        (SET | {"deviations": float("nan")}, "nan"),
        (SET | {"deviations": 10**400}, "deviations"),
        (SET | {"of": "mine"}, "'clip' or 'prior'"),
        (SET | {"span": [0.2, 0.1]}, "No frame"),
        (SET | {"span": [0, float("inf")]}, "span"),
        (SET | {"span": 3}, "span"),
        ({"kind": "interpolate", "other": 3, "amount": 1}, "other is 3"),
        ({"kind": "interpolate", "other": "b"}, "amount is None"),
        ({"kind": "swap", "other": "b", "count": 65}, "from 0 to 64"),
        ({"kind": "noise", "seed": -1}, "seed"),
        (FEATURES, "must map"),
        (FEATURES | {"features": {"96": 1}}, "no feature 96"),
        (FEATURES | {"features": {"-1": 1}}, "no feature '-1'"),
        (FEATURES | {"features": {"1": "a"}}, "1 is 'a'"),
        (FEATURES | {"features": {"1": 1e9}}, "1 is 1000000000.0"),
        (FEATURES | {"features": {"1": 1}, "how": "x"}, "how is 'x'"),
        (FEATURES | {"layer": "module3"}, "no codes"),
        (FEATURES | {"layer": "context.vib.sex", "features": {}}, "no codes"),
        (FEATURES | {"layer": "nothing"}, "no layer 'nothing'"),
    ],
)
def test_an_edit_that_is_none_gets_a_sentence(space, edit, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply_edits(space, [edit])


def test_edits_are_a_list_of_bounded_length(space):
    for edits in (SET, [SET] * 65):
        with pytest.raises(ValueError, match="at most 64"):
            apply_edits(space, edits)
