"""The card of a model: a README.md that says what it is and how well it does."""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from speechbrain_sim.scores import percent

PAPER = "https://arxiv.org/abs/2408.12936"
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
    """

    name: str
    licence: str
    about: str


CORPORA = {
    "ArtificialSpeech": Corpus(
        "Artificial speech set",
        "cc-by-nc-sa-4.0",
        "851 words of three syllables (consonants b, d, g; vowels a, i, u) by "
        "one speaker, from https://github.com/fdenoodt/Artificial-Speech-Dataset",
    ),
    "Synthetic": Corpus(
        "Synthetic speech",
        "apache-2.0",
        "Generated sentences, read by the synthesiser espeak-ng: no recording "
        "of a person",
    ),
}


def corpus_of(training, name=None, licence=None):
    """Finds what is known of the data that an encoder was trained on.

    Arguments
    ---------
    training : dict
        What the encoder says of its training.
    name, licence : str, optional
        What to say instead.

    Returns
    -------
    Corpus
    """
    corpus = training.get("corpus") or "unknown"
    known = CORPORA.get(
        corpus,
        Corpus(
            corpus,
            "unknown",
            "Its licence is not known to this software: ask those who trained "
            "the model",
        ),
    )
    if licence is not None and corpus not in CORPORA:
        known = known._replace(about="As stated by those who trained the model")
    return known._replace(
        name=name or known.name, licence=licence or known.licence
    )


def write_card(folder, config, card):
    """Writes the card of a model.

    Arguments
    ---------
    folder : str or Path
        The model's folder; its name is the title.
    config : dict
        Its config.json.
    card : str
        Name of the file.
    """
    folder = Path(folder)
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
            "## Use",
            "",
            _snippet(title, config),
            "",
            "## Results",
            "",
            *_results(config["probes"]),
            "",
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
    (folder / card).write_text(text, encoding="utf-8")


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
    width = encoder["architecture"]["channels"]
    comes = [f"a decoder of `{layer}`" for layer in config["decoders"]]
    comes += [f"linear probes of {label}" for label in config["probes"]]
    return (
        f"A speech encoder for [SpeechBrain](https://speechbrain.github.io), "
        f"made with speechbrain-sim: {kind} ([paper]({PAPER})). From 16 kHz "
        f"audio it makes one latent per layer: "
        f"{', '.join(f'`{name}`' for name in encoder['layers'])}; {width} "
        f"channels, one frame per 10 ms at the top."
        + (f" It comes with {', '.join(comes)}." if comes else "")
    )


def _snippet(title, config):
    layer = config["encoder"]["layers"][-1]
    lines = [
        "With the package speechbrain-sim installed:",
        "",
        "```python",
        "from speechbrain_sim.inference import SmoothInfoMax",
        "",
        f'source = "{title}"  # this folder, or its name on the Hub',
        "model = SmoothInfoMax.from_pretrained(source)",
        'wav = model.fetch(source, "example.wav")  # or a file of yours',
        f'latent = model.encode_file(wav, "{layer}")',
        "print(latent.mean.shape)  # (1, frames, channels)",
        "```",
        "",
        "In a recipe of SpeechBrain, instead of `Fbank`:",
        "",
        "```yaml",
        "compute_features: !new:speechbrain_sim.lobes.LatentFeatures",
        f"    source: {title}",
        f"    layers: [{layer}]",
        "```",
    ]
    return "\n".join(lines)


def _results(probes):
    if not probes:
        yield "This model comes without probes: nothing was measured."
        return
    for label, probe in probes.items():
        yield f"| {label}, {len(probe['classes'])} classes | test accuracy (%) |"
        yield "|---|---|"
        for layer, score in probe["layers"].items():
            chosen = layer == probe["best_layer"]
            mark = " (chosen on validation data)" if chosen else ""
            yield f"| `{layer}`{mark} | {percent(score)} |"
        chance = next(iter(probe["layers"].values()))["chance"]
        yield f"| the most frequent class | {100 * chance:.1f} |"
        yield ""
    yield (
        "Linear probes on the frozen encoder, on means of posteriors: mean ± "
        "deviation over probe seeds, 95 % interval bootstrapped over test "
        "recordings. The probe that comes along is the one of the first seed. "
        "Settings of the probes:"
    )
    yield ""
    for label, probe in probes.items():
        said = ", ".join(f"{k} {v}" for k, v in probe["settings"].items())
        yield f"- {label}: {said}."


def _training(config):
    data, training = config["data"], config["training"]
    plain = ", ".join(
        f"{key} {value}"
        for key, value in training.items()
        if isinstance(value, (str, int, float, list)) and key != "corpus"
    )
    versions = ", ".join(f"{k} {v}" for k, v in config["versions"].items())
    yield "## Training"
    yield ""
    yield (
        f"Trained on {data['name']}. {data['about']}. Licence of the data: "
        f"{data['licence']}; the weights are given under it."
    )
    yield ""
    yield f"Settings: {plain}. Exported with {versions}."


def _limits(config):
    yield (
        f"- Trained on {config['data']['name']} and nothing else: on other "
        f"voices, rooms or languages the numbers above say little."
    )
    yield "- 16 kHz mono; `encode_file` converts what is not."
    yield (
        "- Probes read what a linear layer can read; they say nothing of fair "
        "use for any group of speakers, and are not meant to identify people."
    )
