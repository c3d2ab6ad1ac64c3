"""Tables, figures and sounds -> report.html and report.md.

The HTML file needs no other file and no network: pictures and sounds are
inside: sounds as mp3, for the numbers are not computed from them, nor are the
pictures. `page.html` is its template, which others may extend.
"""

import base64
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.files import write_bytes
from speechbrain_sim.report import tables
from speechbrain_sim.report.features import Catalogue, render_catalogue
from speechbrain_sim.report.sounds import (
    CODEC,
    RANGE,
    RANGE_DB,
    TYPES,
    common_gain,
    encode_sound,
    log_mel_of,
    outline,
)
from speechbrain_sim.report.style import file_name, mel_png, small_picture


class Table(NamedTuple):
    """A table; its first column names the rows.

    Arguments
    ---------
    title, caption : str
        Its name; what to know about it.
    header, rows : list of str, list of list of str
        Names of the columns; as many cells in each row.
    system : str, optional
        The system it belongs to; always visible if none.
    """

    title: str
    caption: str
    header: list
    rows: list
    system: str | None = None

    @classmethod
    def of(cls, title, caption, rows, system=None):
        """Makes a table of rows that map columns to cells.

        Example
        -------
        >>> Table.of("T", "", [{"": "SIM", "x": "1"}, {"": "GIM"}]).rows
        [['SIM', '1'], ['GIM', '']]
        """
        header = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(name, "") for name in header] for row in rows]
        return cls(title, caption, header, cells, system)


class Figure(NamedTuple):
    """A picture, saved by `speechbrain_sim.report.style.drawing`.

    Arguments
    ---------
    title, caption, system :
        See `Table`.
    stem : str
        Path without suffix, relative to the report's folder; the smaller of svg
        and png is shown.
    alt : str
        Description for those who do not see it.
    """

    title: str
    caption: str
    stem: str
    alt: str
    system: str | None = None


class Stop(NamedTuple):
    """One sound of an explorer: (samples,), float, at 16 kHz.

    Below it are drawn `strips`, if any: name -> (frames,), from its beginning to
    its end, from 0 to the largest.
    """

    label: str
    wav: np.ndarray
    strips: dict = {}


class Explorer(NamedTuple):
    """Sounds that a slider moves through.

    Explorers of one section and one title are shown in one place, and
    differ in their system or in their layer.

    Arguments
    ---------
    title, caption, system :
        See `Table`.
    stops : list of Stop
        At least one; they may differ in length.
    layer : str, optional
        The layer it belongs to.
    """

    title: str
    caption: str
    stops: list
    system: str | None = None
    layer: str | None = None

    @property
    def name(self):
        """Title, system and layer in one."""
        return ", ".join(filter(None, (self.title, self.system, self.layer)))


class Gap(NamedTuple):
    """What could not be measured: its title, the reason, and its system."""

    title: str
    reason: str
    system: str | None = None


class Section(NamedTuple):
    """A part of the report.

    Its anchor `key`, heading `title`, a `sentence` on what to see in it, and
    its `items`: Table, Figure, Explorer, Catalogue or Gap.
    """

    key: str
    title: str
    sentence: str
    items: list


class Group(NamedTuple):
    """Explorers of one title, whose sounds are multiplied by one gain."""

    title: str
    explorers: list
    system: None = None  # of its explorers

    @property
    def layers(self):
        """Names of the layers, in the order of the explorers."""
        return [*filter(None, dict.fromkeys(e.layer for e in self.explorers))]

    @property
    def stops(self):
        """Number of stops of the longest explorer."""
        return max(len(e.stops) for e in self.explorers)

    @property
    def gain(self):
        """See `common_gain`."""
        return common_gain([s.wav for e in self.explorers for s in e.stops])


def write_page(folder, title, note, sections, systems):
    """Writes `report.html`, `report.md` and the sounds, `audio/*.wav`.

    Arguments
    ---------
    folder : str or Path
        Target.
    title, note : str
        Heading of the report; what to know about it.
    sections : list of Section
        The summary, and what follows.
    systems : list of str
        Names of the systems; the page shows one at a time.

    Raises
    ------
    ValueError
        If a table has a row of another length than its header, an explorer has
        no stops, a sound is empty or not finite, a system is not among the
        systems, two sections have the same key, or two explorers the same
        name.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> tone = Explorer("A", "", [Stop("440 Hz", np.sin(np.arange(99) / 6))])
    >>> tones = Section("tones", "Tones", "There is one tone.", [tone])
    >>> write_page(folder, "SIM", "", [tones], ["SIM"])
    >>> sorted(path.name for path in folder.iterdir())
    ['audio', 'report.html', 'report.md']
    """
    folder = Path(folder)
    shown, files = _shown(title, note, sections, systems)
    names = ("report.md", "page.md"), ("report.html", "page.html")
    shown["beside"] = True  # the samples
    pages = {n: template(t, folder).render(shown) for n, t in names}
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for wav, name in files.items():
        (folder / "audio" / name).write_bytes(wav)
    for name, page in pages.items():
        # names of files may hold bytes that are no text
        (folder / name).write_text(page, "utf-8", "backslashreplace")


def write_html(path, title, note, sections, systems=()):
    """Writes the one html file of `write_page`; figures lie in its folder."""
    page = render_html(title, note, sections, systems, Path(path).parent)
    write_bytes(path, page.encode(errors="backslashreplace"))


def render_html(
    title, note, sections, systems=(), folder=None, page="page.html", **more
):
    """Returns the one html file of `write_page`.

    Figures lie in a folder, as does a template `page` that extends page.html;
    `more` is for it.
    """
    shown, _ = _shown(title, note, sections, list(systems))
    return template(page, folder).render(shown, **more)


def _shown(title, note, sections, systems):
    """Returns what the templates show, and the sounds: wav -> name."""
    for problem in _problems(sections, systems):
        raise ValueError(problem)
    files, blobs, groups, drawn = {}, {}, [], []
    for section in sections:
        items = group_explorers(section.items)
        for at, item in enumerate(items):
            if isinstance(item, Group):
                groups.append(_render(item, section.key, files, blobs))
            if isinstance(item, Catalogue):
                items[at] = render_catalogue(item, section.key, files, blobs)
        drawn.append(section._replace(items=items))
    data = {"systems": systems, "groups": groups, "type": TYPES[CODEC]}
    data["blobs"] = [base64.b64encode(blob).decode() for blob in blobs]
    shown = {"title": title, "note": note, "data": data, "codec": CODEC}
    shown |= {"sections": drawn, "systems": systems, "range_db": RANGE_DB}
    shown["beside"] = False
    items = [item for section in drawn for item in section.items]
    shown["features"] = any(isinstance(i, Catalogue) for i in items)
    return shown, files


def group_explorers(items):
    """Replaces explorers of the same title by one group, where the first was.

    Example
    -------
    >>> stops = [Stop("loud", np.array([0.0, -3.0]))]
    >>> explorers = [Explorer("Noise", "", stops, name) for name in "AB"]
    >>> group_explorers(explorers)[0].gain
    0.3
    """
    grouped = {}
    for item in items:
        if isinstance(item, Explorer):
            group = grouped.setdefault(item.title, Group(item.title, []))
            group.explorers.append(item)
        else:
            grouped[id(item)] = item
    return list(grouped.values())


def _render(group, key, files, blobs):
    """Encodes a group; equal sounds, and equal pictures, are kept once."""
    variants = [{**e._asdict(), "stops": []} for e in group.explorers]
    gain = group.gain
    sounds = [
        (variant, stop, gain * np.asarray(stop.wav, np.float64))
        for variant, explorer in zip(variants, group.explorers, strict=True)
        for stop in explorer.stops
    ]
    mels = [log_mel_of(wav) for *_, wav in sounds]
    high = max(mel.max() for mel in mels)
    for (variant, (label, _, strips), wav), mel in zip(
        sounds, mels, strict=True
    ):
        words = (key, variant["system"], variant["layer"], label)
        name = file_name("-".join(filter(None, words)))
        name = f"{len(files):03}-{name}.wav"
        stop = {"label": label, "seconds": round(len(wav) / SAMPLE_RATE, 2)}
        stop["file"] = files.setdefault(encode_sound(wav), name)
        parts = {
            "sound": encode_sound(wav, CODEC),
            "outline": outline(wav),
            "mel": mel_png(mel, high - RANGE, high),
        }
        for part, blob in parts.items():
            stop[part] = blobs.setdefault(blob, len(blobs))
        stop["strips"] = []
        for name, values in strips.items():
            row = np.asarray(values, float)[:, None]
            drawn = mel_png(row, 0, max(row.max(), 1e-30))
            blob = blobs.setdefault(drawn, len(blobs))
            stop["strips"].append((name, blob))
        variant["stops"].append(stop)
    return variants


def _problems(sections, systems):
    """Yields what cannot be shown; see `write_page`."""
    for key in _repeated([section.key for section in sections]):
        yield f"Two sections have the key {key!r}."
    for item in [item for section in sections for item in section.items]:
        if item.system is not None and item.system not in systems:
            there = f"not among the systems {', '.join(systems)}"
            yield f"{item.title!r} belongs to {item.system!r}, {there}."
        if isinstance(item, Table):
            wide = len(item.header)
            for row in item.rows:
                if len(row) != wide:
                    cells = f"{len(row)} cells under a header of {wide}: {row}"
                    yield f"{item.title!r} has a row of {cells}."
        if isinstance(item, Explorer):
            if not item.stops:
                yield f"The explorer {item.name!r} has no stops."
            yield from _problems_of_sounds(
                f"explorer {item.name!r}", item.stops
            )
        if isinstance(item, Catalogue):
            for card in item.cards:
                clips = [*card.moments, *card.steered]
                yield from _problems_of_sounds(f"feature {card.number}", clips)
    for section in sections:
        explorers = [i for i in section.items if isinstance(i, Explorer)]
        for name in _repeated([explorer.name for explorer in explorers]):
            same = "the same title, system and layer"
            yield f"Two explorers of {section.key!r} have {same}: {name}."


def _problems_of_sounds(owner, sounds):
    for sound in sounds:
        wav = np.asarray(sound.wav)
        name = f"{sound.label!r} of the {owner}"
        if wav.ndim != 1 or not wav.size:
            yield f"{name} has the shape {wav.shape} instead of (samples,)."
        if not np.isfinite(wav).all():
            yield f"{name} is not finite."


def _repeated(names):
    return [name for name in names if names.count(name) > 1]


def template(name, folder=None):
    """Opens a template; html is escaped by jinja, markdown by `escape`.

    It lies here or in the folder, which is the figures', too.
    """
    places = [Path(__file__).parent, *filter(None, [folder])]
    environment = Environment(
        loader=FileSystemLoader(places),
        autoescape=name.endswith("html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def embed(stem):
        kind, picture, colours = small_picture(folder / stem)
        data = base64.b64encode(picture).decode()
        # lines may be inverted on a dark page, the colours of an image not
        return {"uri": f"data:image/{kind};base64,{data}", "colours": colours}

    filters = {"picture": embed, "quote": quote, "escape": tables.escape}
    filters["kind"] = lambda item: type(item).__name__
    filters["markdown"] = lambda t: tables.markdown_table(t.header, t.rows)
    filters["numeric_columns"] = lambda t: tables.numeric_columns(
        t.header, t.rows
    )
    environment.filters.update(filters)
    return environment.get_template(name)
