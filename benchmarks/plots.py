"""Bars in pairs, and lines: what can be seen better than read."""

from speechbrain_sim.report.style import drawing


def plot_pairs(pairs, labels, title, ylabel, path, line):
    """Plots two bars beside each other for each of several cases.

    Arguments
    ---------
    pairs : dict of str to (float, float)
        The two heights of each case.
    labels : (str, str)
        Names of the first and of the second bars.
    title, ylabel : str
        Heading; name of the axis, with its unit.
    path : str or Path
        Target without suffix.
    line : (str, float)
        Name and height of a line across.
    """
    with drawing(path) as (_, axes):
        panel = axes[0, 0]
        for i, label in enumerate(labels):
            places = [at + 0.4 * (i - 0.5) for at in range(len(pairs))]
            heights = [pair[i] for pair in pairs.values()]
            bars = panel.bar(places, heights, 0.38, label=label)
            panel.bar_label(bars, fmt="%.2f")
        panel.axhline(line[1], color="black", linestyle=":", label=line[0])
        names = [name.replace(", ", "\n") for name in pairs]
        panel.set_xticks(range(len(pairs)), names)
        panel.set_ylabel(ylabel)
        panel.set_title(title, loc="left")
        panel.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.25))


def plot_lines(lines, title, xlabel, ylabel, path):
    """Plots lines with a marker at each measurement.

    Arguments
    ---------
    lines : dict of str to (list of float, list of float)
        Name of each line, its x and its y.
    title, xlabel, ylabel : str
        Heading; names of the axes, with units.
    path : str or Path
        Target without suffix.
    """
    with drawing(path) as (_, axes):
        panel = axes[0, 0]
        for name, (x, y) in lines.items():
            panel.plot(x, y, marker="o", label=name)
        panel.set_ylim(bottom=0)
        panel.set_xticks(x)
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
        panel.set_title(title, loc="left")
        panel.legend()
