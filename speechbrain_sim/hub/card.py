"""The card of a model: a README.md with its use, results, data and limits.

Its text is the template card.md.
"""

import json
import math
import re
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from speechbrain_sim.data.corpora import UNNAMED
from speechbrain_sim.models.format import (
    BOTTLENECK,
    DECODER,
    ENCODER,
    PROBE,
    parts_of,
)
from speechbrain_sim.report.tables import escape

#: the file
CARD = "README.md"
#: of what a decoder returns a share, if not of the energy
OF = {"SpectrogramDecoder": "variance of log-mel"}


def write_card(folder, config):
    """Writes the card of a model.

    Arguments
    ---------
    folder : str or Path
        The model's folder; its name is the title.
    config : dict
        Its config.json.
    """
    title = Path(folder).resolve().name
    encoder, probes = config["parts"][ENCODER], parts_of(config["parts"], PROBE)
    decoders, made = parts_of(config["parts"], DECODER), encoder["arguments"]
    solved = [  # others are trained, with seeds
        label
        for label, probe in probes.items()
        if all("strength" in score for score in probe["layers"].values())
    ]
    strides = math.prod(stride for row in made["strides"] for stride in row)
    card = fill_in(
        "card.md",
        config,
        card_data=_metadata(title, config["data"], probes).to_yaml(),
        title=title,
        encoder=encoder,
        made=made,
        step=1000 * strides / config["sample_rate"],
        decoders=decoders,
        probes=probes,
        coded=parts_of(config["parts"], BOTTLENECK),
        sparse=[
            name
            for name, part in parts_of(config["parts"], BOTTLENECK).items()
            if not part["class"].endswith("Half")
        ],
        solved=solved,
        seeds=len(probes) > len(solved),
        explained=[
            f"`{layer}` {100 * decoder['valid']['explained']:.0f} % of the "
            + OF.get(decoder["class"], "energy")
            for layer, decoder in decoders.items()
            if "explained" in (decoder.get("valid") or {})
        ],
        settings={
            key: value
            for key, value in config["training"].items()
            if isinstance(value, (str, int, float, list))
            and key != "corpus"
            and (made["probabilistic"] or not key.startswith("kl_"))
        },
    )
    ModelCard(card).save(Path(folder, CARD))


def fill_in(template, *values, **more):
    """Returns the text of a template of this folder, with values filled in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    filters = {"listed": _listed, "stated": _stated, "json": json.dumps}
    filters["escape"] = escape  # autoescape is for html
    environment.filters.update(filters)
    return environment.get_template(template).render(*values, **more)


def _listed(names, quote=""):
    """Writes `a, b and c`, each in quotes."""
    *first, last = [f"{quote}{name}{quote}" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def _stated(settings):
    """Writes `key value, key value`."""
    known = {k: v for k, v in settings.items() if v is not None}
    return escape(", ".join(f"{key} {value}" for key, value in known.items()))


def _metadata(title, data, probes):
    """Makes the yaml at the head of a card, as the Hub reads it."""
    dataset = re.sub(r"\W+", "-", data["name"].lower())
    results = []
    for label, probe in probes.items():
        best = probe["best_layer"]
        result = EvalResult(
            task_type="audio-classification",
            dataset_type=dataset,
            dataset_name=f"{data['name']}, test part",
            metric_type="accuracy",
            metric_name=f"{label}, linear probe on {best}",
            metric_value=round(probe["layers"][best]["accuracy"], 4),
        )
        results.append(result)
    return ModelCardData(
        license=data["licence"],
        # for "speechbrain", the Hub's snippet knows SpeechBrain's classes only
        library_name="speechbrain-sim",
        pipeline_tag="feature-extraction",
        tags=["speechbrain", "speechbrain-sim", "smooth-infomax", "speech"],
        datasets=[dataset] if data["name"] != UNNAMED else None,
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
    text = Path(card).read_text(encoding="utf-8")
    text = re.sub(r'^(source = )".*"', rf'\g<1>"{source}"', text, flags=re.M)
    text = re.sub(r"^(    source: ).*", rf"\g<1>{source}", text, flags=re.M)
    Path(card).write_text(text, encoding="utf-8")
