"""The page of a run that split a layer into halves."""

from pathlib import Path

import numpy as np

from speechbrain_sim.analysis.frame_attribution import (
    acoustic_cues,
    measure_attribution,
    span_cue,
)
from speechbrain_sim.analysis.half_probes import WHOLE, Side
from speechbrain_sim.analysis.halves import OTHERS, measure_model
from speechbrain_sim.analysis.halves_report import section
from speechbrain_sim.analysis.score_sheet import measured
from speechbrain_sim.bottlenecks.coded import MIXED
from speechbrain_sim.data.audio import SAMPLE_RATE, read_audio
from speechbrain_sim.data.tables import read_csv, read_manifest
from speechbrain_sim.files import cached_result, sha256
from speechbrain_sim.models.format import BASELINE, BOTTLENECK, load_parts
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.report.page import write_page


def read_spans(words, polarity):
    r"""Reads where words are spoken that may carry a label, such as an emotion.

    Arguments
    ---------
    words : str or Path
        A csv with the columns ID, start, end (in seconds) and word.
    polarity : str or Path
        A csv with the columns word and polarity, from -1 to 1.

    Returns
    -------
    dict of str to list of (float, float, float)
        Utterance -> its words that have a polarity: see `span_cue`.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "w.csv").write_text("ID,start,end,word\nu,0.1,0.4,Nice\n")
    >>> _ = (folder / "p.csv").write_text("word,polarity\nnice,0.6\n")
    >>> read_spans(folder / "w.csv", folder / "p.csv")
    {'u': [(0.1, 0.4, 0.6)]}
    """
    weights, spans = {}, {}
    for line, row in read_csv(polarity, ["word", "polarity"]):
        (weights[row["word"].lower()],) = _numbers(line, row, "polarity")
    for line, row in read_csv(words, ["ID", "start", "end", "word"]):
        found, word = spans.setdefault(row["ID"], []), row["word"].lower()
        if word in weights:
            found.append((*_numbers(line, row, "start", "end"), weights[word]))
    return spans


def _numbers(line, row, *columns):
    """Reads numbers from the cells of a csv's row."""
    try:
        return [float(row[name]) for name in columns]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{line}: {error}. Correct the line.") from error


def weights_of(parts, entries):
    """Returns the weights of mixed layers: name -> layer -> weight.

    Of each half, and of each baseline; none where nothing is mixed.
    """
    found = {}
    for name, part in parts.items():
        layers = entries[name].get(MIXED) or []
        label = name.partition(".")[2].removeprefix("vib.")
        kind = WHOLE if name.startswith(BASELINE) else "z"
        if len(layers) > 1:
            weights = part.mixer.weights.detach().softmax(0).tolist()
            pairs = zip(layers, weights, strict=True)
            found[f"{kind}_{label}"] = dict(pairs)
    return found


def write_report(
    folder, stores, divisions, data, settings, manifests, data_folder, **page
):
    """Measures the halves of a model folder, and writes its report.

    What is measured is kept, in `halves.json` and `attribution.json`.

    Arguments
    ---------
    folder : str or Path
        With an encoder and halves of a layer.
    stores, divisions, data, settings :
        See `measure_model`.
    manifests, data_folder : dict of str to str or Path, str or Path
        Those that were encoded; of the audio.
    **page : str or Path
        `title` and `note`; and, for the cue of words, `words` and `polarity`:
        see `read_spans`.

    Returns
    -------
    dict
        What was measured.
    """
    folder, layer, label = Path(folder), data.layer, data.label
    csvs = [page[n] for n in ("words", "polarity") if page.get(n)]
    spans = read_spans(*csvs) if len(csvs) == 2 else {}
    model, path = load_encoder(folder), folder / "halves.json"
    found = measure_model(path, model, stores, divisions, data, settings)
    read = _reader(manifests, data_folder)
    names = [f"{BOTTLENECK}_{layer}.vib.{n}" for n in (OTHERS, label)]
    names += [f"{BASELINE}_{layer}.{label}"]
    parts, config = load_parts(folder, names if label else names[:1])
    parts = {n: part.eval().requires_grad_(False) for n, part in parts.items()}
    made_of = {n: config["parts"][n]["sha256"] for n in parts}
    made_of |= {"divisions": divisions, "words": [*map(sha256, csvs)]}
    made_of["stores"] = [store.made_of for store in stores]
    given = stores, layer, divisions.get(label), parts, read, spans
    drives = label and cached_result(
        folder / "attribution.json",
        made_of,
        lambda: measured(_attribution, *given),
    )
    weights = weights_of(parts, config["parts"])
    made = section(found, folder, label, drives, weights, read)
    write_page(folder, page["title"], page["note"], [made], [])
    return found


def _reader(manifests, data_folder):
    """Returns a function: utterance -> samples at 16 kHz."""
    rows = {}
    for csv in manifests.values():
        rows |= read_manifest(csv, data_folder)

    def read(name):
        first, samples = rows[name]["start"], rows[name]["num_samples"]
        return read_audio(rows[name]["wav"], first, first + samples)

    return read


def _attribution(stores, layer, division, parts, read, spans):
    """Attributes test utterances: see `measure_attribution`."""
    side = Side.read(stores, layer, {}, {}).select(division["test"])
    hop, center = stores[0].layers[layer]

    def cues_of(name, frames):
        found = acoustic_cues(read(name), frames, (hop, center))
        if spans:
            times = (center + hop * np.arange(frames)) / SAMPLE_RATE
            found["words"] = span_cue(spans.get(name, ()), times)
        return found

    return measure_attribution(side, [*parts.values()], cues_of)
