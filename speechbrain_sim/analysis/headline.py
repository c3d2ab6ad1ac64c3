"""What a report begins with: the aim, and how far this study reaches it."""

from speechbrain_sim.analysis.delta import (
    KEYS,
    SHARE,
    SYMBOLS,
    best_delta,
    delta_at_share,
)
from speechbrain_sim.analysis.study import Results
from speechbrain_sim.report.page import template


def headline(study, differences):
    """Compares the first system with the last, in numbers of this study.

    Arguments
    ---------
    study : Study
        With all results.
    differences : dict
        Tool -> `Results` of `Tool.compare`.

    Returns
    -------
    str
        Two sentences, from the template headline.md.
    """
    ends = [system.name for system in study.systems]
    if not ends and study.probed:
        first, *others = next(iter(study.probed.values()))
        ends = [first, *others, study.baseline or first]
    ends = list(dict.fromkeys(ends[:1] + ends[-1:]))
    kind, found = best_delta(study)
    key = KEYS[kind]
    gaps = Results(study.results.get(key, {})).split()[1]
    rows = [found.get(end, {}) for end in ends]
    known = differences.get(key, {}).get(ends[0], {}) if ends else {}
    delta, probes = [], []
    for layer in found.layers():
        if all(layer in row for row in rows):
            scores = [delta_at_share(row[layer]) for row in rows]
            best = better(ends, scores, known.get(layer), lower=True)
            delta.append((layer, scores, best))
    for label, systems in study.probed.items():
        if all(end in systems for end in ends):
            each = [systems[end] for end in ends]
            scores = [x["layers"][x["best_layer"]] for x in each]
            probes.append((label, scores, better(ends, scores)))
    filled = {"ends": ends, "share": SHARE, "delta": delta, "probes": probes}
    filled["symbol"] = SYMBOLS[kind]
    text = template("headline.md").render(filled, gaps=gaps, found=found)
    return " ".join(text.split()).replace(" .", ".")


def better(ends, scores, difference=None, lower=False):
    """Names the better of one or two systems, or "" if there is a doubt.

    That is if the interval of the difference includes 0 or, without one, the
    scores' intervals overlap.

    Example
    -------
    >>> scores = [{"interval": [0.2, 0.3]}, {"interval": [0.5, 0.6]}]
    >>> better("AB", scores), better("AB", scores, lower=True)
    ('B', 'A')
    """
    (low, high), (least, most) = (scores[i]["interval"] for i in (0, -1))
    beside = {"interval": (low - most, high - least)}
    low, high = (difference or beside)["interval"]
    return ends[(high < 0) != lower] if low > 0 or high < 0 else ""
