"""Features of phones: of all names that corpora have, and their distances."""

import numpy as np
import pytest

from speechbrain_sim.data import espeak, phones
from speechbrain_sim.data.articulation import (
    CONSONANTS,
    VOWELS,
    articulation,
    distances,
)


def test_every_phone_of_the_corpora_has_its_features():
    for name in {*phones.ARPABET.split(), *espeak.PHONES[1:]}:
        features = articulation(name)
        vowel = name[0] in "AEIOU"
        assert set(features) == set(VOWELS if vowel else CONSONANTS), name
    for name in ("SIL", "SPN", "", "spk0", "7", "f1", "zero"):
        assert articulation(name) == {}


def test_distances_of_the_artificial_set_by_hand():
    names = [c + v for c in "bdg" for v in "aiu"]
    found = distances([articulation(name) for name in names])
    # voice and manner are the same of b, d and g
    assert [*found] == ["place", "height", "backness", "all"]
    of, apart = found["all"]
    assert of.tolist() == list(range(9))
    ba, bi, da = (names.index(n) for n in ("ba", "bi", "da"))
    # a is low and central, i high and front: 1 and a half of five features
    assert apart[ba, bi] == pytest.approx(1.5 / 5)
    assert apart[ba, da] == pytest.approx(1 / 5)
    assert not np.diag(apart).any() and (apart == apart.T).all()
    # a consonant and a vowel have nothing in common
    both = distances([articulation(n) for n in ("B", "P", "IY", "UW")])
    assert both["all"][1][0, 2] == 1
    assert [*both] == ["all"]  # two consonants vary in voice: too few
