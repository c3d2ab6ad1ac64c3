"""Pages of features: of a corpus, in the report, and of a recording."""

from pathlib import Path

import numpy as np

from speechbrain_sim.activations import MEAN
from speechbrain_sim.analysis.feature_cards import Features, Source
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.models.format import DECODER
from speechbrain_sim.report.features import Catalogue
from speechbrain_sim.report.page import Section, write_html, write_page
from speechbrain_sim.steering import coded_layer


def store_source(store, layer, labels, manifest, data_folder):
    """Returns the frames of a store, and their recordings, as a `Source`.

    Arguments
    ---------
    store, layer : ActivationStore, str
        Of the rows "all" or "mean"; the layer below the bottleneck.
    labels : dict
        See `Source`.
    manifest, data_folder : str or Path
        What the store was made of.
    """
    rows, data = store[layer], read_manifest(manifest, data_folder)

    def read(owner, start, stop):
        row = data[store.ids[owner]]
        stop = min(stop, row["num_samples"])
        return read_audio(
            row["wav"], row["start"] + start, row["start"] + stop
        ).numpy()

    pooled = store.made_of["rows"] == MEAN
    geometry = None if pooled else tuple(store.layers[layer])
    return Source(rows, rows.utterance, geometry, store.ids, read, labels)


def file_source(model, path, layer, latent=None):
    """Returns the frames of a file, and the file, as a `Source`."""

    def read(_, start, stop):
        return read_audio(path, start, stop).numpy()

    rows = (latent or model.encode_file(path, layer)).mean[0].cpu()
    geometry = model.encoder.frame_geometry(layer)
    owner = np.zeros(len(rows), np.int64)
    return Source(rows, owner, geometry, [Path(path).name], read, {})


def decoder_below(model, layer):
    """Returns the decoder of a layer that is no code; None without."""
    name = f"{DECODER}_{layer}"
    return model.mods[name] if name in model.mods else None


def write_pages(
    folder,
    model,
    store,
    labels,
    manifest,
    data_folder,
    layers=None,
    names=None,
    scores=None,
    sections=(),
    title="Features",
    note="",
    count=32,
    moments=8,
):
    """Writes a report with the features of bottlenecks.

    Arguments
    ---------
    folder, model : str or Path, SmoothInfoMax
        Of the report, and of the model; opened, with a CodedEncoder.
    store, labels : ActivationStore, dict
        Test data; `Source.labels` of each layer below a bottleneck.
    manifest, data_folder : str or Path
        What the store was made of.
    layers : list of str, optional
        Codes, such as "module3.sae"; by default the first of each layer.
    names : dict of str to dict, optional
        Of each of these, unit -> what it is called.
    scores : dict of str to dict, optional
        Of each of these, further scores to choose by, such as stability: name
        -> (units,), None or NaN where there is none.
    sections, title, note : list of Section, str, str
        What comes before the features; see `write_page`.
    count, moments : int
        Features of each layer; moments of each feature.

    Returns
    -------
    Section
        That of the features.
    """
    coded, items = model.encoder, []
    first = {coded.origin(name): name for name in reversed(coded.bottlenecks)}
    for name in layers or [*first.values()][::-1]:
        layer, bottleneck = coded.origin(name), coded.bottleneck_of(name)
        data = labels.get(layer, {}), manifest, data_folder
        source = store_source(store, layer, *data)
        called, own = ((given or {}).get(name, {}) for given in (names, scores))
        decoder = decoder_below(model, layer)
        features = Features(bottleneck, source, decoder, called)
        items.append(features.catalogue(name, own, count, moments))
    sentence = "Search for a label, open a feature, and listen to its moments."
    section = Section("features", "Features", sentence, items)
    write_page(folder, title, note, [*sections, section], [])
    return section


def file_page(model, path, layer, target, count=16, moments=4, latent=None):
    """Writes a page of the features of one recording: one html file.

    Arguments
    ---------
    model, path : SmoothInfoMax, str or Path
        With bottlenecks; an audio file of any rate.
    layer, target : str or None, str or Path
        Codes, such as "module3.sae", or the only ones; the page.
    count, moments :
        See `write_pages`.
    latent : Latent, optional
        Of the file and the layer below, if it was encoded.

    Raises
    ------
    BadAudio, ValueError
        If the file cannot be read, or is too short for a frame; if the layer
        holds no codes, or those of means over recordings.
    """
    layer, encoder = coded_layer(model, layer), model.encoder
    if encoder.pools(layer):
        raise ValueError(
            f"{layer} codes means over recordings, which have no moments: "
            f"choose codes of frames."
        )
    origin, bottleneck = encoder.origin(layer), encoder.bottleneck_of(layer)
    source = file_source(model, path, origin, latent)
    names = encoder.names_of(layer)
    features = Features(bottleneck, source, decoder_below(model, origin), names)
    shown = features.catalogue(layer, {}, count, moments)
    if isinstance(shown, Catalogue):
        cards = [
            c._replace(moments=[features.whole(c.number), *c.moments])
            for c in shown.cards
        ]
        shown = shown._replace(cards=cards)
    sentence = "Its strongest features; search for a name or a number."
    section = Section("features", "Features", sentence, [shown])
    write_html(target, Path(path).name, "", [section])
