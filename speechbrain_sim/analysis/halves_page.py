"""The page of a run that split a layer into halves."""

from pathlib import Path

from speechbrain_sim.analysis.frame_attribution import (
    acoustic_cues,
    measure_attribution,
)
from speechbrain_sim.analysis.half_probes import WHOLE, Side
from speechbrain_sim.analysis.halves import OTHERS, measure_model
from speechbrain_sim.analysis.halves_report import section
from speechbrain_sim.analysis.score_sheet import measured
from speechbrain_sim.bottlenecks.coded import MIXED
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.splits import of_part
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.data.words import (
    read_spans,
    read_values,
    spoken_values,
)
from speechbrain_sim.files import cached_result, sha256
from speechbrain_sim.models.format import BASELINE, BOTTLENECK, load_parts
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.report.page import Gap, write_page

#: where no csv of words is given
WORDLESS = (
    "Nothing states when words are spoken: give --words. A synthetic corpus of an "
    "earlier version has no words.csv: make it anew, in another --data_folder."
)


def weights_of(parts, entries):
    """Returns the weights of mixed layers: name -> layer -> weight.

    Of the halves and the baseline; none where nothing is mixed.
    """
    found = {}
    for name, part in parts.items():
        layers = entries[name].get(MIXED) or []
        if len(layers) > 1:
            kind = (
                WHOLE if name.startswith(BASELINE) else name.rpartition(".")[2]
            )
            weights = part.mixer.weights.detach().softmax(0).tolist()
            found[kind] = dict(zip(layers, weights, strict=True))
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
        `title` and `note`; and, for cues, csv files `words` and `polarity`, or
        None: see `speechbrain_sim.data.words`.

    Returns
    -------
    dict
        What was measured.
    """
    folder, layer, label = Path(folder), data.layer, data.label
    csvs = {n: page[n] for n in ("words", "polarity") if page[n]}
    model, path = load_encoder(folder), folder / "halves.json"
    found = measure_model(path, model, stores, divisions, data, settings)
    read = _reader(manifests, data_folder)
    names = [f"{BOTTLENECK}_{layer}.vib.{n}" for n in (OTHERS, label)]
    names += [f"{BASELINE}_{layer}_{label}"]
    parts, config = load_parts(folder, names if label else names[:1])
    parts = {n: part.eval().requires_grad_(False) for n, part in parts.items()}
    made_of = {n: config["parts"][n]["sha256"] for n in parts}
    made_of |= {"divisions": divisions}
    made_of |= {name: sha256(path) for name, path in csvs.items()}
    made_of["stores"] = [store.made_of for store in stores]
    given = stores, layer, divisions.get(label), parts, read, csvs
    drives = label and cached_result(
        folder / "attribution.json",
        made_of,
        lambda: measured(_attribution, *given),
    )
    weights = weights_of(parts, config["parts"])
    made = section(found, folder, label, drives, weights, read)
    if label and not csvs:
        made.items.append(Gap("Words as cues", WORDLESS))
    write_page(folder, page["title"], page["note"], [made], [])
    return found


def _reader(manifests, data_folder):
    """Returns a function: test utterance -> samples at 16 kHz."""
    rows = {p: read_manifest(csv, data_folder) for p, csv in manifests.items()}
    rows = of_part(rows, "test")

    def read(name):
        first, samples = rows[name]["start"], rows[name]["num_samples"]
        return read_audio(rows[name]["wav"], first, first + samples)

    return read


def _attribution(stores, layer, division, parts, read, csvs):
    """Attributes test utterances: see `measure_attribution`."""
    side = Side.read(stores, layer, {}, {})
    side = side.select(division["test"], "test")
    geometry, values = stores[0].layers[layer], {}
    spans = read_spans(csvs["words"]) if csvs else {}
    if spans:
        every = {span.word for known in spans.values() for span in known}
        values["words"] = dict.fromkeys(every, 1.0)
    if "polarity" in csvs:
        values["polarity"] = read_values(csvs["polarity"])

    def cues_of(name, frames):
        found = acoustic_cues(read(name), frames, geometry)
        for cue, of in values.items():
            spoken = spoken_values(spans.get(name, []), of, frames, *geometry)
            found[cue] = spoken.abs().numpy()
        return found

    return measure_attribution(side, [*parts.values()], cues_of)
