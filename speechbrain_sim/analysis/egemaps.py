"""Acoustic parameters of recordings as factors, and what kind each is.

Eyben et al.: The Geneva minimalistic acoustic parameter set (GeMAPS) for voice
research and affective computing (2016); computed by openSMILE, which is free for
research only: https://github.com/audeering/opensmile
"""

import re
from functools import lru_cache

from speechbrain_sim.data.audio import SAMPLE_RATE, read_audio
from speechbrain_sim.extras import import_extra

#: kinds of factors, and what their names contain
GROUPS = {
    "rate": "^rate|PerSec|SegmentLength|SegmentsPer",
    "formants": "F[123](freq|frequency|bandwidth|amplitude)",
    "voice quality": "jitter|shimmer|HNR|H1-",
    "pitch": "pitch|^F0",
    "loudness": "loudness|equivalentSoundLevel",
    "MFCC": "mfcc",
    "spectrum": "alphaRatio|hammarberg|slope|spectralFlux",
    "phone": "phone|syllable|vowel|consonant",
}


def group_of(factor):
    """Returns the kind of a factor: one of `GROUPS`, or its own name.

    Example
    -------
    >>> list(map(group_of, ["phones", "F0semitoneFrom27.5Hz_sma3nz_amean"]))
    ['phone', 'pitch']
    >>> group_of("speaker")
    'speaker'
    """
    kinds = (kind for kind, p in GROUPS.items() if re.search(p, factor))
    return next(kinds, factor)


def egemaps(row):
    """Computes the 88 functionals of eGeMAPS v02 of a recording.

    An option `factors_of`, see `speechbrain_sim.analysis.score_sheet.Settings`.

    Arguments
    ---------
    row : dict
        Row of a manifest: `wav`, and `start` and `num_samples` at 16 kHz.

    Returns
    -------
    dict of str to float

    Raises
    ------
    ImportError
        If opensmile is missing.
    """
    start, samples = int(row.get("start") or 0), int(row["num_samples"])
    wav = read_audio(row["wav"], start, start + samples)
    found = _functionals().process_signal(wav.numpy(), SAMPLE_RATE)
    return {name: float(x) for name, x in found.iloc[0].items()}


@lru_cache
def _functionals():
    opensmile = import_extra("opensmile", "opensmile")
    return opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.Functionals,
    )
