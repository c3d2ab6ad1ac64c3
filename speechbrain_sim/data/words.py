"""When words are spoken, and what they are worth: csv files -> values of frames."""

from collections import defaultdict
from typing import NamedTuple

import torch

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.tables import read_csv
from speechbrain_sim.data.targets import normalise


class Span(NamedTuple):
    """A word, or several that are spoken as one; start and end in seconds."""

    word: str
    start: float
    end: float


def read_spans(path):
    r"""Reads when each word is spoken.

    Arguments
    ---------
    path : str or Path
        A csv with the columns ID, word, start and end (seconds): `words.csv` of
        the synthetic corpus, or made of an aligner's.

    Returns
    -------
    dict of str to list of Span
        Utterance to its words, in order, as `normalise` writes them.

    Raises
    ------
    ValueError
        For a line without a word, or whose times are none, or overlap.

    Example
    -------
    >>> path = getfixture("tmp_path") / "words.csv"
    >>> _ = path.write_text("ID,word,start,end\na,shy,0.1,0.4\na,fox,0.4,0.7\n")
    >>> read_spans(path)["a"][1]
    Span(word='FOX', start=0.4, end=0.7)
    """
    spans = defaultdict(list)
    for where, row in read_csv(path, ["ID", "word", "start", "end"]):
        word = normalise(row["word"] or "")
        times = [_number(row[name]) for name in ("start", "end")]
        if not word or None in times or not 0 <= times[0] < times[1]:
            raise ValueError(
                f"{where} needs a word, and a start before its end (seconds), "
                f"got {row['word']!r}, {row['start']!r} and {row['end']!r}."
            )
        spans[row["ID"]].append((Span(word, *times), where))
    for name, lines in spans.items():
        lines.sort(key=lambda line: line[0].start)
        for (one, _), (other, where) in zip(lines, lines[1:], strict=False):
            if other.start < one.end - 1e-3:
                both = f"'{one.word}' and '{other.word}' of {name}"
                raise ValueError(f"{where}: {both} overlap: correct the times.")
    return {name: [span for span, _ in lines] for name, lines in spans.items()}


def read_values(path, column="polarity"):
    r"""Reads what words are worth, such as their polarity, -1 to 1.

    Arguments
    ---------
    path : str or Path
        A csv with the columns word and `column`.
    column : str
        Of numbers.

    Returns
    -------
    dict of str to float

    Raises
    ------
    ValueError
        For no word, a value that is no number or beyond 1, or two values of a
        word; names the line.

    Example
    -------
    >>> path = getfixture("tmp_path") / "polarity.csv"
    >>> _ = path.write_text("word,polarity\ngood,0.7\nfoolish,-0.5\n")
    >>> read_values(path)
    {'GOOD': 0.7, 'FOOLISH': -0.5}
    """
    values = {}
    for where, row in read_csv(path, ["word", column]):
        word, value = normalise(row["word"] or ""), _number(row[column])
        if not word or value is None or abs(value) > 1:
            raise ValueError(
                f"{where} needs a word and its {column} from -1 to 1, got "
                f"{row['word']!r} and {row[column]!r}."
            )
        if values.setdefault(word, value) != value:
            both = f"{values[word]:g} and {value:g}"
            raise ValueError(f"{where}: {word} has two values, {both}.")
    if not values:
        raise ValueError(f"{path} lists no word: add some.")
    return values


def spoken_values(spans, values, frames, hop, center):
    """Returns the value of the word at each frame.

    Arguments
    ---------
    spans : list of Span
        Of an utterance.
    values : dict of str to float
        Word to value. Of several that are spoken as one, the largest counts.
    frames, hop, center : int, int, float
        Of the utterance; frame i is at sample center + hop * i.

    Returns
    -------
    torch.Tensor
        (frames,), 0 where no word with a value is spoken.

    Example
    -------
    >>> spans = [Span("SHY", 0.0, 0.01), Span("IN THE", 0.01, 0.03)]
    >>> spoken_values(spans, {"SHY": -0.5, "THE": 1.0}, 4, 160, 20)
    tensor([-0.5000,  1.0000,  1.0000,  0.0000])
    """
    seconds = (center + hop * torch.arange(frames)) / SAMPLE_RATE
    spoken = torch.zeros(frames)
    for word, start, end in spans:
        worth = [values.get(part, 0.0) for part in (word, *word.split())]
        inside = (start <= seconds) & (seconds < end)
        spoken[inside] = max(worth, key=abs)
    return spoken


def _number(text):
    """A finite number, None for anything else."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None
