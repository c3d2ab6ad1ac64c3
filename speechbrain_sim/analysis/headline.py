"""What a report begins with: the aim, and how far this study reaches it."""

from speechbrain_sim.analysis.delta import SHARE, delta_at_share
from speechbrain_sim.analysis.study import Results

AIM = (
    "Smooth InfoMax (SIM) learns from speech without labels, module by module "
    "as Greedy InfoMax (GIM), and keeps its latent space smooth, so that a few "
    "dimensions carry a sound, and people can look into it, while a linear "
    "probe still reads what it did."
)


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
        Two sentences. A system is better if the interval of the difference,
        or else of both numbers, leaves no doubt.
    """
    names = [system.name for system in study.systems]
    if not names and study.probed:
        first, *others = next(iter(study.probed.values()))
        names = [first, study.baseline or (others or [first])[-1]]
    ends = list(dict.fromkeys([*names[:1], *names[-1:]]))
    parts = [*_of_delta(study, ends, differences), *_of_probes(study, ends)]
    return f"{AIM} In this study, {'; '.join(parts)}." if parts else AIM


def _of_delta(study, ends, differences):
    """Yields a clause on δ, if it was measured in any system inside."""
    found, gaps = Results(study.results.get("delta", {})).split()
    layers = [
        n for n in found.layers() if all(n in found.get(e, {}) for e in ends)
    ]
    if found and layers:
        clauses, every = [], differences.get("delta", {}).get(ends[0], {})
        for layer in layers:
            scores = [delta_at_share(found[end][layer]) for end in ends]
            values = [(x["value"], *x["interval"]) for x in scores]
            of = every.get(layer, {}).get("interval")
            clauses.append(f"{_compared(ends, values, of, -1)} in {layer}")
        what = f"when {SHARE} of the dimensions are swapped, δ (lower is better"
        yield f"{what}) is {', '.join(clauses)}"
    elif found or gaps:
        yield "δ could not be compared (the gaps below state why)"


def _of_probes(study, ends):
    """Yields a clause on the probes of each label that the systems have."""
    for label, systems in study.probed.items():
        if all(end in systems for end in ends):
            scores = [systems[e]["layers"] for e in ends]
            best = [systems[e]["best_layer"] for e in ends]
            pairs = zip(scores, best, strict=True)
            scores = [layers[layer] for layers, layer in pairs]
            values = [(x["accuracy"], *x["interval"]) for x in scores]
            what = f"the accuracy of {label} (higher is better) is "
            yield what + _compared(ends, values, None, 1)


def _compared(ends, values, difference, sign):
    """Writes two numbers in percent, and which is better: higher if sign > 0.

    Example
    -------
    >>> _compared(["A", "B"], [(0.5, 0.4, 0.6), (0.8, 0.7, 0.9)], None, -1)
    '50.0 % for A and 80.0 % for B (A is better)'
    """
    pairs = zip(ends, values, strict=True)
    text = " and ".join(f"{100 * x[0]:.1f} % for {name}" for name, x in pairs)
    if len(ends) < 2:
        return text
    (_, low, high), (_, other_low, other_high) = values
    low, high = difference or (low - other_high, high - other_low)
    better = ends[0] if sign * low > 0 and sign * high > 0 else None
    better = ends[1] if sign * low < 0 and sign * high < 0 else better
    verdict = f"{better} is better" if better else "no clear difference"
    return f"{text} ({verdict})"
