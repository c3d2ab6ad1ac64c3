"""How phones are made: voice, place and manner; height and backness of vowels.

Names are ARPAbet, the letters of the artificial set and of VocalSet, and
syllables of two letters. A diphthong has the features of its beginning.

Reference: Ladefoged and Johnson, *A Course in Phonetics*, 7th edition, 2014.
"""

import numpy as np

CONSONANTS = "voice", "place", "manner"
VOWELS = "height", "backness"

_CONSONANTS = """\
voiceless bilabial stop P; voiced bilabial stop B; voiceless alveolar stop T;
voiced alveolar stop D; voiceless velar stop K; voiced velar stop G;
voiceless postalveolar affricate CH; voiced postalveolar affricate JH;
voiceless labiodental fricative F; voiced labiodental fricative V;
voiceless dental fricative TH; voiced dental fricative DH;
voiceless alveolar fricative S; voiced alveolar fricative Z;
voiceless postalveolar fricative SH; voiced postalveolar fricative ZH;
voiceless glottal fricative HH H; voiced bilabial nasal M;
voiced alveolar nasal N; voiced velar nasal NG; voiced alveolar lateral L;
voiced alveolar approximant R; voiced bilabial approximant W;
voiced palatal approximant Y"""

#: 1 is high, and back
_VOWELS = """\
1 0 IY IH I; 1 1 UW UH U; 0.5 0 EY EH E; 0.5 0.5 AH AX ER; 0.5 1 OW OY AO O;
0 0 AE; 0 0.5 AY AW A; 0 1 AA"""

TABLE = {}
for _entry in _CONSONANTS.split(";"):
    _voice, _place, _manner, *_names = _entry.split()
    _found = dict(zip(CONSONANTS, (_voice, _place, _manner), strict=True))
    TABLE |= dict.fromkeys(_names, _found)
for _entry in _VOWELS.split(";"):
    _height, _backness, *_names = _entry.split()
    _found = {"height": float(_height), "backness": float(_backness)}
    TABLE |= dict.fromkeys(_names, _found)


def articulation(name):
    """Returns the features of a phone or syllable; none of anything else.

    Arguments
    ---------
    name : str
        ARPAbet with or without stress, a letter, or two letters.

    Returns
    -------
    dict of str to (str or float)
        Some of `CONSONANTS`, names, and `VOWELS`, from 0 (low, front) to 1.

    Example
    -------
    >>> articulation("B")
    {'voice': 'voiced', 'place': 'bilabial', 'manner': 'stop'}
    >>> articulation("IY1"), articulation("SIL")
    ({'height': 1.0, 'backness': 0.0}, {})
    >>> sorted(articulation("gu"))
    ['backness', 'height', 'manner', 'place', 'voice']
    """
    name = name.upper()
    if "height" in TABLE.get(name[:-1], {}) and name[-1] in "012":
        name = name[:-1]  # stress
    if name not in TABLE and len(name) == 2:
        consonant, vowel = (TABLE.get(letter, {}) for letter in name)
        both = "voice" in consonant and "height" in vowel
        return {**consonant, **vowel} if both else {}
    return dict(TABLE.get(name, {}))


def distances(features):
    """Computes the distances between classes by their features.

    Arguments
    ---------
    features : list of dict
        Of each class, feature -> name or number, from 0 to 1.

    Returns
    -------
    dict of str to (numpy.ndarray, numpy.ndarray)
        By feature, and if there are several by `all`: the classes that have it,
        and their distances, (classes, classes): those of numbers, or 0 of equal
        names and 1 of others; of `all`, the mean over the features of either
        class, 1 of one that the other lacks. Without features that less than
        three classes have, or that do not vary.

    Example
    -------
    >>> found = distances([articulation(x) for x in ("b", "p", "d", "sil")])
    >>> [*found], found["voice"][0].tolist(), found["all"][1][0].round(2).tolist()
    (['voice', 'place', 'all'], [0, 1, 2], [0.0, 0.33, 0.33])
    """
    found, names = {}, dict.fromkeys(n for each in features for n in each)
    wanted = {name: (_apart, name) for name in names}
    if len(names) > 1:
        wanted["all"] = _apart_in_all, None
    for key, (measure, name) in wanted.items():
        of = [i for i, f in enumerate(features) if (name in f if name else f)]
        values = [features[i][name] if name else features[i] for i in of]
        apart = np.array([[measure(a, b) for a in values] for b in values])
        if len(of) > 2 and apart.any():
            found[key] = np.array(of), apart
    return found


def _apart(one, other):
    """Distance of two values: numbers, or names."""
    return abs(one - other) if isinstance(one, float) else float(one != other)


def _apart_in_all(one, other):
    """Mean distance over the features of either."""
    both = one.keys() & other.keys()
    apart = sum(_apart(one[n], other[n]) for n in both)
    return (apart + len(one.keys() ^ other.keys())) / len(one.keys() | other)
