"""The report of a run that trained bottlenecks."""

import functools
from pathlib import Path

from speechbrain_sim.analysis import feature_pages, sparsity
from speechbrain_sim.analysis.alignment_report import report_run
from speechbrain_sim.analysis.feature_cards import F1, GAIN
from speechbrain_sim.bottlenecks.coded import NAMES
from speechbrain_sim.files import cached_result, text_hash
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import BOTTLENECK, identity_of
from speechbrain_sim.models.load import add_metadata
from speechbrain_sim.report.page import Section, Table
from speechbrain_sim.report.tables import number

#: scores on the pages of features, and what they are of the sheet's units
SHOWN = {F1: "f1", GAIN: "gain", "stability": "stability", "certainty": "sure"}
#: scores that a bottleneck's entry in config.json repeats
REPEATED = ("reconstruction", "firing", "probes", "recovered")


def write_report(
    folder,
    stores,
    labels,
    data,
    sheet,
    factors_of=None,
    published=None,
    predictors=None,
    aligned=None,
    beside=(),
    **page,
):
    """Scores the bottlenecks of a model folder, and writes its report.

    The scores are computed once, and kept in `sparsity.json` and
    `alignment.json`.

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
    predictors : dict of str to torch.Tensor, optional
        See `speechbrain_sim.analysis.code_parts.read_predictors`.
    aligned, beside : dict, list of str
        Of codes that classes were trained with: arguments of
        `speechbrain_sim.analysis.alignment_scores.score_run`.
    **page : str
        `title` and `note`.
    """
    folder, model = Path(folder), SmoothInfoMax.from_pretrained(folder)
    coded = model.encoder
    names = {label: known[2] for label, known in labels.items()}
    settings = sheet, factors_of, predictors or {}
    scores = _scores(folder, model, stores, labels, *settings)
    called = {n: name_units(scores, n, names) for n in coded.bottlenecks}
    repeat_scores(folder, scores, called)
    rows = classes_of_rows(coded, stores["test"], labels)
    units = scores["units"].items()
    chosen_by = {name: page_scores(of, called[name]) for name, of in units}
    sections = [sparsity.section(scores, folder)]
    if aligned:
        run = folder, model, stores, data, beside
        sections = [report_run(*run, **aligned), *sections]
    sections += published_sections(published)
    page |= {"sections": sections, "names": called, "scores": chosen_by}
    feature_pages.write_pages(
        folder, model, stores["test"], rows, *data, **page
    )


def classes_of_rows(coded, store, labels):
    """Returns `Source.labels` of each coded layer: see `write_report`."""
    return {
        layer: {
            label: (names, store.labels(label, *how, layer))
            for label, (*how, names) in labels.items()
        }
        for layer in map(coded.origin, coded.bottlenecks)
    }


def _scores(folder, model, stores, labels, sheet, factors_of, predictors):
    """Scores the bottlenecks, or reads what was scored."""
    kinds = {label: known[:2] for label, known in labels.items()}
    names = {label: known[2] for label, known in labels.items()}
    settings = {"names": names, "factors_of": factors_of, **sheet}
    settings["predictors"] = predictors
    made_of = {"sheet": sheet, "labels": labels, "of": sparsity.VERSION}
    made_of["factors"] = factors_of and describe_function(factors_of)
    made_of["predictors"] = {
        layer: text_hash(str(weight.tolist()))
        for layer, weight in predictors.items()
    }
    made_of["model"] = identity_of(model.config)
    made_of["stores"] = {part: s.made_of for part, s in stores.items()}
    coded = model.encoder
    work = coded.encoder, coded.bottlenecks, stores, kinds, settings
    return cached_result(
        folder / "sparsity.json", made_of, lambda: sparsity.measure_codes(*work)
    )


def describe_function(function):
    """Returns module, name and arguments of a function, for json.

    Example
    -------
    >>> describe_function(functools.partial(sorted, reverse=True))
    ['builtins', 'sorted', '()', "{'reverse': True}"]
    """
    whole = functools.partial(function)  # one of partials is one
    name = getattr(whole.func, "__qualname__", repr(whole.func))
    return [whole.func.__module__, name, repr(whole.args), repr(whole.keywords)]


def name_units(scores, name, classes):
    """Names units of a bottleneck by the classes that they detect.

    Arguments
    ---------
    scores, name, classes : dict, str, dict of str to list of str
        From `sparsity.measure_codes`; the bottleneck; names of each label's
        classes.

    Returns
    -------
    dict of int to str
        Without units whose F1 is not above that of predicting the class always.
    """
    units = scores["units"][name]
    if "class" not in units:
        return {}
    known = classes[scores["codes"][name][sparsity.LEARNED]["concept"]["label"]]
    pairs = enumerate(zip(units["class"], units["gain"], strict=True))
    return {unit: known[index] for unit, (index, gain) in pairs if gain > 0}


def page_scores(units, called):
    """Returns the scores of units that pages show; F1 only where it names one."""
    shown = {name: units[key] for name, key in SHOWN.items() if key in units}
    for name in {F1, GAIN} & shown.keys():
        values = enumerate(shown[name])
        shown[name] = [x if unit in called else None for unit, x in values]
    return {n: x for n, x in shown.items() if called or n not in (F1, GAIN)}


def repeat_scores(folder, scores, called):
    """Writes main scores and names of features into a folder's config.json.

    `called` holds `name_units` of each bottleneck; their F1 is added.
    """
    entries = {}
    for name, versions in scores["codes"].items():
        learned, units = versions[sparsity.LEARNED], scores["units"][name]
        own = {"scores": {key: learned[key] for key in REPEATED}}
        own[NAMES] = {
            str(unit): f"{label} (F1 {units['f1'][unit]:.2f})"
            for unit, label in called[name].items()
        }
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
