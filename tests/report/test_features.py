"""Cards of features, before a browser shows them."""

import numpy as np

from speechbrain_sim.report.features import (
    Card,
    Catalogue,
    Clip,
    points,
    render_catalogue,
)


def tone(pitch):
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(9600) / 16000)


def make_card(number, pitch, **changes):
    clip = Clip("recorded", tone(pitch), (0.1, 0.2))
    return Card(number, "", [], {}, ([1, 2], 1.0), {}, [clip], [])._replace(
        **changes
    )


def test_a_full_page_leaves_features_out_and_states_it():
    cards = [make_card(i, 200 + 100 * i) for i in range(5)]
    catalogue, blobs = Catalogue("codes", "Five.", cards, ""), {}
    whole = render_catalogue(catalogue, "f", {}, {})
    assert len(whole.cards) == 5 and whole.caption == "Five."
    one = render_catalogue(catalogue, "f", {}, blobs, most=1)
    assert len(one.cards) == 1 and len(blobs) == 2  # sound and picture
    assert (
        one.caption
        == "Five. 4 further features are left out: the page is full."
    )


def test_equal_sounds_are_kept_once():
    blobs, files = {}, {}
    cards = [make_card(1, 300), make_card(2, 300)]
    shown = render_catalogue(Catalogue("c", "", cards, ""), "f", files, blobs)
    first, second = (card["moments"][0] for card in shown.cards)
    assert first["sound"] == second["sound"] and first["mel"] == second["mel"]
    assert len(files) == 1 and len(blobs) == 2
    assert {card["id"] for card in shown.cards} == {"f-c-1", "f-c-2"}
    assert first["span"] == (16.67, 16.67)


def test_a_long_curve_keeps_its_peak():
    curve = np.stack([np.arange(1000) / 1000, np.zeros(1000)])
    curve[1, 777] = 1
    drawn = [tuple(map(float, p.split(","))) for p in points(curve, 1).split()]
    assert len(drawn) <= 240 and min(y for _, y in drawn) == 0
