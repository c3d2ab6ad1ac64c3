"""Tables, figures and sounds -> report.html and report.md.

The HTML file needs no other file and no network: pictures and sounds are
inside. `page.html` is its template.
"""

import base64
import io
import math
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import soundfile
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.logmel import LOGMEL, LogMel
from speechbrain_sim.report.style import mel_png
from speechbrain_sim.report.tables import (
    escape,
    markdown_table,
    numeric_columns,
)

#: peak of the loudest sound of an explorer, and what counts as silence
PEAK, SILENCE = 0.9, 1e-4
#: range of a mel spectrogram's colours in dB, and the same in nats
RANGE_DB = 60
RANGE = RANGE_DB / 10 * math.log(10)


class Table(NamedTuple):
    """A table; its first column names the rows.

    Arguments
    ---------
    title, caption : str
        Its name; what to know about it.
    header : list of str
        Names of the columns.
    rows : list of list of str
        Cells, as many in each row as in the header.
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
        Path without suffix, relative to the report's folder; the svg is shown.
    alt : str
        Description for those who do not see it.
    """

    title: str
    caption: str
    stem: str
    alt: str
    system: str | None = None


class Stop(NamedTuple):
    """One sound of an explorer.

    Arguments
    ---------
    label : str
        E.g. "alpha 0.25".
    wav : numpy.ndarray
        (samples,), float, at 16 kHz.
    """

    label: str
    wav: np.ndarray


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

    Arguments
    ---------
    key : str
        Its anchor.
    title, sentence : str
        Its heading; what to see in it.
    items : list of Table, Figure, Explorer or Gap
        What it shows, in this order.
    """

    key: str
    title: str
    sentence: str
    items: list


class Group(NamedTuple):
    """Explorers of one title, whose sounds are multiplied by one gain."""

    title: str
    explorers: list
    gain: float
    system: None = None  # of its explorers

    @property
    def layers(self):
        """Names of the layers, in the order of the explorers."""
        layers = dict.fromkeys(e.layer for e in self.explorers)
        return [layer for layer in layers if layer is not None]

    @property
    def stops(self):
        """Number of stops of the longest explorer."""
        return max(len(e.stops) for e in self.explorers)


def write_page(folder, title, note, summary, sections, systems):
    """Writes `report.html`, `report.md` and the sounds, `audio/*.wav`.

    Arguments
    ---------
    folder : str or Path
        Target.
    title, note : str
        Heading of the report; what to know about it.
    summary : Table
        Shown first.
    sections : list of Section
        Shown then.
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
    >>> table = Table("Accuracy", "", ["system", "all"], [["SIM", "70.1"]])
    >>> tone = Explorer("A", "", [Stop("440 Hz", np.sin(np.arange(99) / 6))])
    >>> tones = Section("tones", "Tones", "There is one tone.", [tone])
    >>> write_page(folder, "SIM", "", table, [tones], ["SIM"])
    >>> sorted(path.name for path in folder.iterdir())
    ['audio', 'report.html', 'report.md']
    """
    _check(summary, sections, systems)
    folder = Path(folder)
    sections = [s._replace(items=group_explorers(s.items)) for s in sections]
    files, blobs = {}, {}
    groups = [
        _render(item, section.key, files, blobs)
        for section in sections
        for item in section.items
        if isinstance(item, Group)
    ]
    data = {"systems": systems, "groups": groups}
    data["blobs"] = [base64.b64encode(blob).decode() for blob in blobs]
    shown = {"title": title, "note": note, "summary": summary, "data": data}
    shown |= {"sections": sections, "systems": systems, "range_db": RANGE_DB}
    names = ("report.md", "page.md"), ("report.html", "page.html")
    pages = {n: _template(t, folder).render(shown) for n, t in names}
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for wav, name in files.items():
        (folder / "audio" / name).write_bytes(wav)
    for name, page in pages.items():
        (folder / name).write_text(page, encoding="utf-8")


def group_explorers(items):
    """Replaces explorers of the same title by one group, where the first was.

    Example
    -------
    >>> stops = [Stop("loud", np.array([0.0, -3.0]))]
    >>> explorers = [Explorer("Noise", "", stops, name) for name in "AB"]
    >>> group_explorers(explorers)[0].gain
    0.3
    """
    together, grouped = {}, []
    for item in items:
        if not isinstance(item, Explorer):
            grouped.append(item)
        elif item.title in together:
            together[item.title].append(item)
        else:
            together[item.title] = [item]
            grouped.append(Group(item.title, together[item.title], 1.0))
    for at, item in enumerate(grouped):
        if isinstance(item, Group):
            wavs = (s.wav for e in item.explorers for s in e.stops)
            grouped[at] = item._replace(gain=common_gain(wavs))
    return grouped


def common_gain(wavs):
    """Computes the gain that brings the loudest sound to a peak of 0.9.

    Example
    -------
    >>> common_gain([np.array([0.1, -0.45]), np.zeros(3)])
    2.0
    """
    peak = max(float(np.abs(wav).max()) for wav in wavs)
    return PEAK / peak if peak > SILENCE else 1.0


def encode_wav(wav):
    """Encodes a sound, (samples,) in [-1, 1], as a WAV file of 16 bits.

    Example
    -------
    >>> len(encode_wav(np.zeros(100)))
    244
    """
    file = io.BytesIO()
    soundfile.write(file, wav, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return file.getvalue()


def _render(group, key, files, blobs):
    """Encodes a group; equal sounds, and equal pictures, are kept once."""
    variants = [{**e._asdict(), "stops": []} for e in group.explorers]
    sounds = [
        (variant, stop.label, group.gain * np.asarray(stop.wav, np.float64))
        for variant, explorer in zip(variants, group.explorers, strict=True)
        for stop in explorer.stops
    ]
    log_mel = LogMel()
    mels = [
        log_mel(torch.tensor(wav).float()[None])[LOGMEL].mean[0].numpy()
        for _, _, wav in sounds
    ]
    high = max(mel.max() for mel in mels)
    for (variant, label, wav), mel in zip(sounds, mels, strict=True):
        wav, mel = encode_wav(wav), mel_png(mel, high - RANGE, high)
        words = (key, variant["system"], variant["layer"], label)
        name = re.sub(r"[^\w.+-]+", "-", "-".join(filter(None, words)))[:80]
        stop = {
            "label": label,
            "file": files.setdefault(wav, f"{len(files):03}-{name}.wav"),
            "wav": blobs.setdefault(wav, len(blobs)),
            "mel": blobs.setdefault(mel, len(blobs)),
        }
        variant["stops"].append(stop)
    return variants


def _check(summary, sections, systems):
    """Raises a ValueError if something cannot be shown; see `write_page`."""
    keys = ["summary", *(section.key for section in sections)]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"Two sections have the key {key!r}.")
    for item in [summary, *(i for s in sections for i in s.items)]:
        if item.system is not None and item.system not in systems:
            raise ValueError(
                f"{item.title!r} belongs to {item.system!r}, which is not "
                f"among the systems {', '.join(systems)}."
            )
        if isinstance(item, Table):
            _check_table(item)
        if isinstance(item, Explorer):
            _check_explorer(item)
    for section in sections:
        names = [i.name for i in section.items if isinstance(i, Explorer)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"Two explorers of the section {section.key!r} have the "
                    f"same title, system and layer: {name}."
                )


def _check_table(table):
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(
                f"{table.title!r} has a row of {len(row)} cells under a header "
                f"of {len(table.header)}: {row}."
            )


def _check_explorer(explorer):
    name = explorer.name
    if not explorer.stops:
        raise ValueError(f"The explorer {name!r} has no stops.")
    for label, wav in explorer.stops:
        wav = np.asarray(wav)
        if wav.ndim != 1 or not wav.size:
            raise ValueError(
                f"{label!r} of the explorer {name!r} has the shape "
                f"{wav.shape} instead of (samples,)."
            )
        if not np.isfinite(wav).all():
            raise ValueError(
                f"{label!r} of the explorer {name!r} is not finite."
            )


def _template(name, folder):
    """Opens a template; html is escaped by jinja, markdown by `escape`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith("html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def embed_svg(stem):
        svg = (folder / f"{stem}.svg").read_bytes()
        uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
        # lines may be inverted on a dark page, the colours of an image not
        return {"uri": uri, "colours": b"<image" in svg}

    environment.filters.update(
        kind=lambda item: type(item).__name__,
        numeric_columns=lambda table: numeric_columns(table.header, table.rows),
        svg=embed_svg,
        quote=quote,
        escape=escape,
        markdown=lambda table: markdown_table(table.header, table.rows),
    )
    return environment.get_template(name)
