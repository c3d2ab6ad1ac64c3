"""What a report begins with: the aim, and how far this study reaches it."""

from speechbrain_sim.analysis.delta import SHARE, delta_at_share
from speechbrain_sim.analysis.study import Results

AIM = (
    "Smooth InfoMax (SIM) learns from speech without labels, module by module "
    "as Greedy InfoMax (GIM), but keeps its latent space smooth: a few "
    "dimensions shall carry a sound, so that people can look into it, at no "
    "loss of what linear probes read."
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
        Two sentences: the aim, and the numbers.
    """
    ends = [system.name for system in study.systems]
    if not ends and study.probed:
        ends = list(next(iter(study.probed.values())))
        ends = [ends[0], study.baseline or ends[-1]]
    ends = list(dict.fromkeys(ends[:1] + ends[-1:]))
    parts = [*_of_delta(study, ends, differences), *_of_probes(study, ends)]
    return f"{AIM} In this study, {', and '.join(parts)}." if parts else AIM


def _of_delta(study, ends, differences):
    """Yields a clause on δ, if it was measured in any system."""
    found, gaps = Results(study.results.get("delta", {})).split()
    rows = [found.get(end, {}) for end in ends]
    shared = [n for n in found.layers() if all(n in row for row in rows)]
    scores = {n: [delta_at_share(row[n]) for row in rows] for n in shared}
    if scores:
        known = differences.get("delta", {}).get(ends[0], {})
        text = compared(ends, scores, "value", known, lower=True)
        yield (
            f"after {SHARE} of the dimensions were copied from one recording "
            f"to another, their sounds still differ by δ = {text}"
        )
    elif found or gaps:
        yield "δ could not be compared (the table below states why)"


def _of_probes(study, ends):
    """Yields a clause on the probes, in each system's best layer."""
    scores = {
        label: [
            systems[end]["layers"][systems[end]["best_layer"]] for end in ends
        ]
        for label, systems in study.probed.items()
        if all(end in systems for end in ends)
    }
    if scores:
        yield f"linear probes are right in {compared(ends, scores, 'accuracy')}"


def compared(ends, scores, key, known=None, lower=False):
    """Writes numbers of one or two systems, and which is better.

    Arguments
    ---------
    ends : list of str
        Names of the systems.
    scores : dict
        Where -> a score of each system: `key`, and `interval`.
    key : str
        What is written, in percent.
    known : dict, optional
        Where -> difference with its `interval`. Without it, there is no clear
        difference where the scores' intervals overlap.
    lower : bool
        Whether lower is better.

    Returns
    -------
    str

    Example
    -------
    >>> a, b = ({"x": x, "interval": [x, x + 0.1]} for x in (0.2, 0.5))
    >>> compared(["A", "B"], {"phones": [a, b]}, "x")
    '20.0 % (A) against 50.0 % (B) for phones (higher is better: B for phones)'
    """
    texts, better = [], {}
    for where, pair in scores.items():
        marks = [f" ({end})" for end in ends] if not texts else [""] * 2
        shown = zip(pair, marks, strict=False)
        values = [f"{100 * x[key]:.1f} %{mark}" for x, mark in shown]
        texts.append(f"{' against '.join(values)} for {where}")
        (low, high), (least, most) = pair[0]["interval"], pair[-1]["interval"]
        beside = {"interval": (low - most, high - least)}
        low, high = (known or {}).get(where, beside)["interval"]
        first = high < 0 if lower else low > 0
        last = low > 0 if lower else high < 0
        name = ends[0] if first else ends[-1] if last else "no clear difference"
        better.setdefault(name, []).append(where)
    text = ", ".join(texts)
    if len(ends) < 2:
        return text
    best = "; ".join(
        f"{name} for {' and '.join(where)}" for name, where in better.items()
    )
    return f"{text} ({'lower' if lower else 'higher'} is better: {best})"
