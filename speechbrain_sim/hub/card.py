"""The card of a model: a README.md with its use, results, data and limits.

Its text is the template card.md.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from speechbrain_sim.models.format import DECODER, ENCODER, PROBE

#: the file
CARD = "README.md"
PAPER = "https://arxiv.org/abs/2408.12936"


#: channels of the paper's encoders; narrower ones are called reduced
PAPER_CHANNELS = 512


class Corpus(NamedTuple):
    """Training data: name, licence, a sentence, epochs of the paper.

    `licence` is the identifier on the Hub; the weights are given under it.
    Runs of fewer than `paper_epochs` are called reduced.
    """

    name: str
    licence: str
    about: str
    paper_epochs: int | None = None


CORPORA = {
    "ArtificialSpeech": Corpus(
        "Artificial speech set",
        "cc-by-nc-sa-4.0",
        "680 words for training and 171 for testing, of three syllables "
        "(consonants b, d, g; vowels a, i, u), by one speaker, published by "
        "Fabian Denoodt at "
        "https://github.com/fdenoodt/Artificial-Speech-Dataset. In the "
        "published split, 285 of the 360 syllables that probes are tested on "
        "are cut from words that encoders hear",
        1000,
    ),
    "LibriSpeech": Corpus(
        "LibriSpeech",
        "cc-by-4.0",
        "Read English audiobooks, published by Vassil Panayotov and others, "
        "2015, at https://www.openslr.org/12",
        100,
    ),
    "Synthetic": Corpus(
        "Synthetic speech",
        "apache-2.0",
        "Sentences made up by speechbrain-sim and read by the synthesiser "
        "espeak-ng in some of its voices: audio of our own, no recording of a "
        "person",
    ),
}


def corpus_of(training, name=None, licence=None):
    """Returns what a card states of the data that an encoder was trained on.

    Arguments
    ---------
    training : dict
        `training` of a config.json.
    name, licence : str, optional
        What to state instead; a name in `CORPORA` brings its licence along.

    Returns
    -------
    Corpus

    Example
    -------
    >>> corpus_of({"corpus": "Folder"}).licence
    'other'
    >>> corpus_of({"corpus": "Folder"}, "LibriSpeech").licence
    'cc-by-4.0'
    """
    name = name or training.get("corpus") or "data that are not named"
    about = "As stated by those who trained the model"
    if licence is None:
        about = (
            "Its licence is not known to this software: ask those who trained "
            "the model before you use it"
        )
    known = CORPORA.get(name, Corpus(name, "other", about))
    return known._replace(licence=licence or known.licence)


def write_card(folder, config):
    """Writes the card of a model.

    Arguments
    ---------
    folder : str or Path
        The model's folder; its name is the title.
    config : dict
        Its config.json.
    """
    folder = Path(folder)
    title = folder.resolve().name
    decoders, probes = (_parts(config, kind) for kind in (DECODER, PROBE))
    encoder, data = config["parts"][ENCODER], config["data"]
    training, made = config["training"], encoder["arguments"]
    strides = math.prod(stride for row in made["strides"] for stride in row)
    epochs, width = training.get("epochs") or 0, made["channels"]
    full = width >= PAPER_CHANNELS and epochs >= (data["paper_epochs"] or 0)
    card = _template().render(
        config,
        card_data=_metadata(title, data, probes).to_yaml(),
        title=title,
        paper=PAPER,
        paper_channels=PAPER_CHANNELS,
        encoder=encoder,
        width=width,
        step=1000 * strides / config["sample_rate"],
        reduced=epochs and not full,
        decoders=decoders,
        probes=probes,
        explained=[
            f"`{layer}` {100 * decoder['valid']['explained']:.0f} %"
            for layer, decoder in decoders.items()
            if "explained" in (decoder.get("valid") or {})
        ],
        settings={
            key: value
            for key, value in training.items()
            if isinstance(value, (str, int, float, list))
            and key != "corpus"
            and (made["probabilistic"] or not key.startswith("kl_"))
        },
    )
    ModelCard(card).save(folder / CARD)


def _template():
    """The template, with its filters."""
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters.update(code=_code, listed=_listed, stated=_stated)
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return environment.from_string(text)


def _parts(config, kind):
    """Entries of the decoders by layer, or of the probes by label."""
    return {
        name.removeprefix(f"{kind}_"): part
        for name, part in config["parts"].items()
        if name.startswith(kind)
    }


def _code(names):
    return [f"`{name}`" for name in names]


def _listed(names):
    """Writes `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _stated(settings):
    """Writes `key value, key value`."""
    known = {k: v for k, v in settings.items() if v is not None}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def _slug(name):
    return re.sub(r"\W+", "-", name.lower())


def _metadata(title, data, probes):
    """The yaml at the head of a card, as the Hub reads it."""
    results = [
        EvalResult(
            task_type="audio-classification",
            dataset_type=_slug(data["name"]),
            dataset_name=f"{data['name']}, test part",
            metric_type="accuracy",
            metric_name=f"{label}, linear probe on {probe['best_layer']}",
            metric_value=round(
                probe["layers"][probe["best_layer"]]["accuracy"], 4
            ),
        )
        for label, probe in probes.items()
    ]
    return ModelCardData(
        license=data["licence"],
        library_name="speechbrain",
        pipeline_tag="feature-extraction",
        tags=["speechbrain", "speechbrain-sim", "smooth-infomax", "speech"],
        datasets=[_slug(data["name"])],
        metrics=["accuracy"] if results else None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def name_source(card, source):
    """Changes the source in the snippets of a card, and nothing else.

    Arguments
    ---------
    card : str or Path
        The README.md.
    source : str
        `user/model`, or a folder.
    """
    card = Path(card)
    text = card.read_text(encoding="utf-8")
    text = re.sub(r'^(source = )".*"', rf'\g<1>"{source}"', text, flags=re.M)
    text = re.sub(r"^(    source: ).*", rf"\g<1>{source}", text, flags=re.M)
    card.write_text(text, encoding="utf-8")
