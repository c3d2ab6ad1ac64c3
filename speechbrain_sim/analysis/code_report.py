"""The report of a run that trained bottlenecks."""

from pathlib import Path

from speechbrain_sim.analysis import feature_pages, sparsity
from speechbrain_sim.files import cached_result
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import BOTTLENECK, identity_of
from speechbrain_sim.models.load import add_metadata
from speechbrain_sim.report.page import Section, Table
from speechbrain_sim.report.tables import number

#: what features are chosen by for their pages, besides F1 and effect
CHOSEN_BY = {"stability": "stability", "certainty": "sure"}
#: scores that a bottleneck's entry in config.json repeats
REPEATED = ("reconstruction", "firing", "probes", "recovered")


def write_report(
    folder, stores, labels, data, sheet, factors_of=None, published=None, **page
):
    """Scores the bottlenecks of a model folder, and writes its report.

    The scores are computed once, and kept in `sparsity.json`.

    Arguments
    ---------
    folder : str or Path
        With an encoder and its bottlenecks.
    stores : dict of str to ActivationStore
        "train", "valid" and "test".
    labels : dict of str to (list of str, str, list of str)
        Classes of each label, its kind, and names of the classes.
    data : (str, str)
        Manifest of the test part, folder of its audio.
    sheet, factors_of : dict, callable
        See `speechbrain_sim.analysis.score_sheet.Settings`.
    published : dict, optional
        Numbers of a paper: see `hparams/published/VocalSet.yaml`.
    **page : str
        `title` and `note`.
    """
    folder, model = Path(folder), SmoothInfoMax.from_pretrained(folder)
    coded = model.encoder
    kinds = {label: known[:2] for label, known in labels.items()}
    names = {label: known[2] for label, known in labels.items()}
    settings = {"names": names, "factors_of": factors_of, **sheet}
    made_of = {"sheet": sheet, "labels": labels, "of": sparsity.VERSION}
    made_of["factors"] = factors_of is not None
    made_of["model"] = identity_of(model.config)
    made_of["stores"] = {part: s.made_of for part, s in stores.items()}
    work = coded.encoder, coded.bottlenecks, stores, kinds, settings
    scores = cached_result(
        folder / "sparsity.json", made_of, lambda: sparsity.measure_codes(*work)
    )
    repeat_scores(folder, scores, names)
    rows = {
        layer: {
            label: (names[label], stores["test"].labels(label, *how, layer))
            for label, how in kinds.items()
        }
        for layer in map(coded.origin, coded.bottlenecks)
    }
    chosen_by = {
        name: {s: units[key] for s, key in CHOSEN_BY.items() if key in units}
        for name, units in scores["units"].items()
    }
    sections = [sparsity.section(scores, folder)]
    sections += published_sections(published)
    page |= {"sections": sections, "scores": chosen_by}
    feature_pages.write_pages(
        folder, model, stores["test"], rows, *data, **page
    )


def repeat_scores(folder, scores, names):
    """Writes main scores and names of features into a folder's config.json.

    A feature is named by the class that goes along with it, and by its F1.
    """
    entries = {}
    for name, versions in scores["codes"].items():
        learned, units = versions[sparsity.LEARNED], scores["units"][name]
        own = {"scores": {key: learned[key] for key in REPEATED}, "names": {}}
        pairs = zip(units.get("class", ()), units.get("f1", ()), strict=True)
        for feature, (index, f1) in enumerate(pairs):
            if index is not None and f1 > 0:
                known = names[learned["concept"]["label"]][index]
                own["names"][str(feature)] = f"{known} (F1 {f1:.2f})"
        entries[f"{BOTTLENECK}_{name}"] = own
    add_metadata(folder, entries)


def published_sections(published):
    """Makes a Section of a paper's accuracies, of a layer and over sparsity."""
    if not published:
        return []
    published, header = dict(published), ["", "layer"]
    note, sparsities = published.pop("note"), published.pop("sparsities")
    header += [f"{share} % zero" for share in sparsities]
    tables = []
    for label, systems in published.items():
        title = f"Published accuracy of {label} (%)"
        found = {n: [s["layer"], *s["codes"]] for n, s in systems.items()}
        rows = [[n, *(number(x, 1) for x in v)] for n, v in found.items()]
        tables.append(Table(title, note, header, rows))
    sentence = "Of other encoders, to compare with."
    return [Section("published", "What the paper reports", sentence, tables)]
