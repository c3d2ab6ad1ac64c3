"""The card of a model: a README.md that says what it is and how well it does."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from speechbrain_sim.analysis.probes import percent
from speechbrain_sim.models.format import DECODER, ENCODER, PROBE

#: the file
CARD = "README.md"
PAPER = "https://arxiv.org/abs/2408.12936"


#: channels of the paper's encoders; narrower ones are called reduced
PAPER_CHANNELS = 512


#: what a card says of the members of the family
MODELS = {
    "sim": "Smooth InfoMax: greedy modules with Gaussian posteriors",
    "gim": "Greedy InfoMax: greedy modules without posteriors",
    "sim_beta0": "Smooth InfoMax without its KL term",
    "sim_kl_only": "Smooth InfoMax whose training does not sample",
    "sim_end_to_end": "Smooth InfoMax, trained end to end",
    "cpc": "Contrastive Predictive Coding, trained end to end",
    "supervised": "the same network, trained with labels",
    "random": "the same network, untrained",
}


class Corpus(NamedTuple):
    """What a card says of the training data.

    Arguments
    ---------
    name : str
        Its name.
    licence : str
        Identifier of its licence on the Hub; the weights are given under it.
    about : str
        A sentence.
    paper_epochs : int, optional
        How long the paper trains on it; shorter runs are called reduced.
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
    """Finds what is known of the data that an encoder was trained on.

    Arguments
    ---------
    training : dict
        What the encoder says of its training.
    name, licence : str, optional
        What to say instead; a name in `CORPORA` brings its licence along.

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
    config = dict(config, encoder=config["parts"][ENCODER])
    for kind in (DECODER, PROBE):
        config[f"{kind}s"] = {
            name.removeprefix(f"{kind}_"): part
            for name, part in config["parts"].items()
            if name.startswith(kind)
        }
    title = folder.resolve().name
    text = "\n".join(
        [
            "---",
            _metadata(title, config),
            "---",
            f"# {title}",
            "",
            _what(config),
            "",
            *_reduced(config),
            "## Use",
            "",
            _snippet(title, config),
            "",
            "## Results",
            "",
            *_results(config["probes"]),
            *_decoders(config["decoders"]),
            *_training(config),
            "",
            "## Limits",
            "",
            *_limits(config),
            "",
            "## Citation",
            "",
            CITATION,
        ]
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def name_source(card, source):
    """Lets the snippets of a card load another source; all else stays.

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


CITATION = f"""\
```bibtex
@misc{{denoodt2025smooth,
  title = {{Smooth InfoMax -- Towards Easier Post-Hoc Interpretability}},
  author = {{Denoodt, Fabian and de Boer, Bart and Oramas, Jos{{\\'e}}}},
  year = {{2025}},
  eprint = {{2408.12936}},
  url = {{{PAPER}}}
}}
@inproceedings{{loewe2019putting,
  title = {{Putting an End to End-to-End: Gradient-Isolated Learning of
    Representations}},
  author = {{L{{\\"o}}we, Sindy and O'Connor, Peter and Veeling, Bastiaan}},
  booktitle = {{Advances in Neural Information Processing Systems}},
  year = {{2019}}
}}
@article{{speechbrain,
  title = {{SpeechBrain: A General-Purpose Speech Toolkit}},
  author = {{Ravanelli, Mirco and others}},
  year = {{2021}},
  eprint = {{2106.04624}}
}}
```
"""


def _slug(name):
    return re.sub(r"\W+", "-", name.lower())


def _metadata(title, config):
    """The yaml at the head of a card, as the Hub reads it."""
    data = config["data"]
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
        for label, probe in config["probes"].items()
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
    ).to_yaml()


def _what(config):
    encoder, training = config["encoder"], config["training"]
    kind = MODELS.get(training.get("model"), "An encoder of the same family")
    width = encoder["arguments"]["channels"]
    strides = (s for x in encoder["arguments"]["strides"] for s in x)
    step = 1000 * math.prod(strides) / config["sample_rate"]
    comes = []
    if config["decoders"]:
        layers = _listed(f"`{layer}`" for layer in config["decoders"])
        comes.append(f"decoders of {layers}")
    if config["probes"]:
        comes.append(f"linear probes of {_listed(config['probes'])}")
    return (
        f"A speech encoder for [SpeechBrain](https://speechbrain.github.io), "
        f"made with speechbrain-sim: {kind} ([paper]({PAPER})). From 16 kHz "
        f"audio it makes one latent per layer: "
        f"{_listed(f'`{name}`' for name in encoder['layers'])}; {width} "
        f"channels, one frame per {step:g} ms at the top."
        + (f" It comes with {_listed(comes)}." if comes else "")
    )


def _listed(names):
    """Writes `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _reduced(config):
    """Says so if a run is smaller or shorter than the paper's."""
    width = config["encoder"]["arguments"]["channels"]
    epochs = config["training"].get("epochs")
    full = config["data"]["paper_epochs"]
    if not epochs or (width >= PAPER_CHANNELS and epochs >= (full or 0)):
        return
    yield (
        f"**This is a reduced run:** {width} channels and {epochs} epochs, "
        f"where the paper's encoders have {PAPER_CHANNELS} channels"
        + (f" and {full} epochs on this data" if full else ", on other data")
        + ". Its numbers do not say how well the method does at full size."
    )
    yield ""


def _snippet(title, config):
    layer = config["encoder"]["layers"][-1]
    heard = [
        f'heard = model.decode(model.encode_file(wav, "{name}").mean, "{name}")'
        for name in list(config["decoders"])[:1]
    ]
    lines = [
        "With the Python package speechbrain-sim installed, see its README:",
        "",
        "```python",
        "from speechbrain_sim.inference import SmoothInfoMax",
        "",
        f'source = "{title}"  # this folder, or its name on the Hub',
        "model = SmoothInfoMax.from_pretrained(source)",
        'wav = model.fetch(source, "example.wav")  # or a file of yours',
        f'latent = model.encode_file(wav, "{layer}")',
        "print(latent.mean.shape)  # (1, frames, channels)",
        *heard,
        "```",
        "",
        "In a recipe of SpeechBrain, instead of `Fbank`:",
        "",
        "```yaml",
        "compute_features: !new:speechbrain_sim.integrations.speechbrain.LatentFeatures",
        f"    source: {title}",
        f"    layers: [{layer}]",
        "```",
    ]
    return "\n".join(lines)


def _results(probes):
    if not probes:
        yield "This model comes without probes: nothing was measured."
        yield ""
        return
    for label, probe in probes.items():
        yield (
            f"| {label}, {len(probe['classes'])} classes | test accuracy (%) "
            f"| lowest to highest seed | the probe here |"
        )
        yield "|---|---|---|---|"
        for layer, score in probe["layers"].items():
            chosen = layer == probe["best_layer"]
            mark = " (chosen on validation data)" if chosen else ""
            seeds = [100 * accuracy for accuracy in score["per_seed"]]
            yield (
                f"| `{layer}`{mark} | {percent(score)} "
                f"| {min(seeds):.1f} to {max(seeds):.1f} | {seeds[0]:.1f} |"
            )
        chance = next(iter(probe["layers"].values()))["chance"]
        yield f"| the most frequent class | {100 * chance:.1f} | | |"
        yield ""
    yield (
        "Linear probes on the frozen encoder, on means of posteriors: mean ± "
        "deviation over probe seeds, 95 % interval bootstrapped over test "
        "recordings. Of each probe, the first seed's comes along: the last "
        "column. Settings, as options of recipes/probe.py:"
    )
    yield ""
    for label, probe in probes.items():
        said = ", ".join(
            f"{key} {value}"
            for key, value in probe["settings"].items()
            if value is not None
        )
        yield f"- {label}: {said}."
    yield ""


def _decoders(decoders):
    """How much each decoder gives back."""
    known = {
        layer: 100 * decoder["valid"]["explained"]
        for layer, decoder in decoders.items()
        if "explained" in decoder.get("valid", {})
    }
    if known:
        said = (f"`{layer}` {share:.0f} %" for layer, share in known.items())
        yield (
            f"The decoders give back so much of the energy of validation "
            f"recordings: {_listed(said)}."
        )
        yield ""


def _training(config):
    data, training = config["data"], config["training"]
    unsaid = {"corpus"}
    if not config["encoder"]["arguments"]["probabilistic"]:
        unsaid |= {"kl_weight", "kl_reduction"}  # there is no KL
    plain = ", ".join(
        f"{key} {value}"
        for key, value in training.items()
        if isinstance(value, (str, int, float, list)) and key not in unsaid
    )
    versions = ", ".join(f"{k} {v}" for k, v in config["versions"].items())
    yield "## Training"
    yield ""
    yield (
        f"Trained on: {data['name']}. {data['about']}. Licence of the data: "
        f"{data['licence']}; the weights are given under the same."
    )
    yield ""
    yield f"Settings: {plain}. Exported with {versions}."


def _limits(config):
    yield (
        f"- Its training data are all it has heard ({config['data']['name']}): "
        f"of other voices, rooms or languages the numbers above say little."
    )
    if config["probes"]:
        yield (
            "- Log-mel spectrograms, or the same network untrained, can tell "
            "as much or more: the READMEs of speechbrain-sim compare with "
            "both."
        )
    yield "- 16 kHz mono; `encode_file` converts what is not."
    yield (
        "- Probes read what a linear layer can read; they say nothing of fair "
        "use for any group of speakers, and are not meant to identify people."
    )
