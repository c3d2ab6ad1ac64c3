"""The look of every figure; only what draws imports matplotlib.

Figures are objects of their own: no backend is chosen, no state is global.
"""

import io
import re
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

#: Okabe and Ito's colours, which colour-blind eyes distinguish
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#999999"]
COLOURS += ["#E69F00", "#56B4E9", "#CC79A7", "#F0E442"]
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "speechbrain_sim",
    # names are text: matplotlib would read `$x$` as mathematics, and may raise
    "text.parse_math": False,
}
#: brightest level of a mel spectrogram: steps of 1 dB
LEVELS = 60


def colour(index):
    """Returns the colour of the system, layer or term with an index."""
    return COLOURS[index % len(COLOURS)]


def file_name(text):
    """Replaces what a file's name should not hold; at most 80 bytes.

    Example
    -------
    >>> file_name("SIM, α = 1 / 2")
    'SIM-α-1-2'
    """
    safe = re.sub(r"[^\w.+-]+", "-", text)
    return safe.encode()[:80].decode(errors="ignore")


def figure_stem(*names):
    """Returns the stem of a figure with names: a path that any disk takes.

    Example
    -------
    >>> figure_stem("shape", "module1"), figure_stem("shape", "a/b")
    ('figures/shape_module1', 'figures/shape_a-b-30c364e7')
    """
    name = "_".join(names)
    if (safe := file_name(name)) != name:  # others may become the same
        safe += f"-{zlib.crc32(name.encode(errors='backslashreplace')):x}"
    return f"figures/{safe}"


def look(name, index):
    """Returns the label and the colour of a system with an index.

    A legend would leave out names that begin with `_`.
    """
    label = f" {name}" if name.startswith("_") else name
    return {"label": label, "color": colour(index)}


@contextmanager
def drawing(path, rows=1, columns=1, size=(6.4, 3.2), **shared):
    """Opens a figure; saves it as svg and png when the block ends.

    Arguments
    ---------
    path : str or Path
        Target without suffix; folders are made.
    rows, columns : int
        Of the grid of axes.
    size : (float, float)
        Width and height in inches.
    **shared : bool or str
        `sharex`, `sharey` of matplotlib.

    Yields
    ------
    figure, axes : (matplotlib.figure.Figure, numpy.ndarray)
        The axes as (rows, columns).

    Example
    -------
    >>> path = getfixture("tmp_path") / "line"
    >>> with drawing(path) as (figure, axes):
    ...     lines = axes[0, 0].plot([0, 1])
    >>> sorted(file.name for file in path.parent.iterdir())
    ['line.png', 'line.svg']
    """
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    cycle = {"axes.prop_cycle": matplotlib.cycler(color=COLOURS)}
    with matplotlib.rc_context({**STYLE, **cycle}):
        figure = Figure(figsize=size)
        yield figure, figure.subplots(rows, columns, squeeze=False, **shared)
        how = {"bbox_inches": "tight", "dpi": 150}
        for suffix, metadata in ((".svg", {"Date": None}), (".png", None)):
            file = path.with_name(f"{path.name}{suffix}")
            figure.savefig(file, metadata=metadata, **how)


@contextmanager
def layer_drawing(path, layers, width=2.6, height=2.8, **shared):
    """Opens a figure with a panel per layer and one legend below.

    As `drawing`, with a shared y axis; width and height are of a panel, in
    inches. Yields the axes of each layer, a dict.
    """
    grid = 1, len(layers), (width * len(layers) + 0.6, height)
    with drawing(path, *grid, sharey=True, **shared) as (figure, axes):
        panels = dict(zip(layers, axes[0], strict=True))
        for layer, panel in panels.items():
            panel.set_title(layer, loc="left")
        yield panels
        legend_below(figure)


def legend_below(figure):
    """Draws one legend for all panels, each name once."""
    entries = {}
    for panel in figure.axes:
        names = panel.get_legend_handles_labels()
        for handle, name in zip(*names, strict=True):
            entries.setdefault(name, handle)
    figure.tight_layout()
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.02)}
    columns = min(len(entries), 5)
    figure.legend(entries.values(), entries.keys(), ncols=columns, **place)


def draw_counts(panels, systems, quantity, share=False):
    """Draws a percentage and its interval over counts of dimensions.

    Arguments
    ---------
    panels : dict of str to matplotlib.axes.Axes
        From `layer_drawing`.
    systems : dict
        System -> layer -> `counts`, and for each `quantity` and `interval`.
    quantity : str
        What is drawn.
    share : bool
        Whether counts are divided by the layer's `dimensions`.
    """
    for i, (name, layers) in enumerate(systems.items()):
        for layer, found in layers.items():
            x, y = np.array(found["counts"]), 100 * np.array(found[quantity])
            low, high = 100 * np.transpose(found["interval"])
            drawn = x > 0  # the axis is logarithmic
            x, y, low, high = x[drawn], y[drawn], low[drawn], high[drawn]
            x = x / found["dimensions"] if share else x
            panel, shade = panels[layer], {"color": colour(i), "alpha": 0.25}
            panel.plot(x, y, "o-", markersize=3, **look(name, i))
            panel.fill_between(x, low, high, linewidth=0, **shade)
            panel.set_xscale("log", base=2)
            panel.set_ylim(0, max(105, *high, panel.get_ylim()[1]))


def error_bars(scores, key="value", scale=1):
    """Returns values, and the distances of their intervals' ends to them.

    A distance is 0 where rounding puts the value outside its interval, which
    matplotlib refuses.

    Example
    -------
    >>> y, ends = error_bars([{"value": 2, "interval": [1, 4]}])
    >>> y.tolist(), ends.tolist()
    ([2], [[1], [2]])
    """
    y = scale * np.array([score[key] for score in scores])
    ends = scale * np.array([score["interval"] for score in scores])
    return y, np.maximum(0, [y - ends[:, 0], ends[:, 1] - y])


def mel_png(mel, low, high, colours="magma"):
    """Draws (frames, channels) as a small png: one pixel per number.

    Time goes right, channels go up; `low` and `high` are the values at the ends
    of matplotlib's `colours`.

    Example
    -------
    >>> mel_png(np.zeros((65, 80)), 0, 1)[1:4]
    b'PNG'
    """
    import matplotlib

    levels = (LEVELS * (mel - low) / (high - low)).clip(0, LEVELS).round()
    picture = Image.fromarray(levels.astype(np.uint8).T[::-1].copy())
    shades = np.linspace(0, 1, LEVELS + 1)
    palette = matplotlib.colormaps[colours](shades, bytes=True)
    picture.putpalette(palette[:, :3].tobytes())
    return _png(picture)


def small_picture(path):
    """Returns a drawing's svg, or its png in 256 colours if that is smaller.

    Also whether it shows an image, whose colours have a meaning.
    """
    svg = Path(f"{path}.svg").read_bytes()
    with Image.open(f"{path}.png") as picture:
        png = _png(picture.convert("RGB").quantize(256))
    smaller = ("svg+xml", svg) if len(svg) <= len(png) else ("png", png)
    return *smaller, b"<image" in svg


def _png(picture):
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()
