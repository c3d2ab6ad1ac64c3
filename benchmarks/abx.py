"""ABX of this package beside fastabx and discophon, on the same features.

    pip install 'speechbrain-sim[abx]'   # Python 3.12 or later
    python -m benchmarks.abx --encoder logmel --manifest test.csv --data DATA

Both packages get an item file and a file of features per utterance. Without
limits on tokens and speakers, nothing is drawn: errors have to be equal.
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from speechbrain_sim.analysis.abx import KINDS, abx, encode_tokens
from speechbrain_sim.analysis.tokens import CONTEXTS, read_tokens
from speechbrain_sim.extras import import_extra
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report.tables import markdown_table

ALL = sys.maxsize
ITEMS = "#file onset offset #phone prev-phone next-phone speaker"


def noise_like(name, x):
    """Returns noise of the shape of the features of an utterance."""
    generator = keyed_generator(0, "abx noise", name)
    return torch.randn(x.shape, generator=generator)


def write_items(features, tokens, folder):
    """Writes an item file, and the features of each utterance, at 100 Hz."""
    lines = [ITEMS]
    for phone, context, speaker, utterance, *span in tokens:
        start, stop = (f"{label / 100:.2f}" for label in span)
        around = context or "x x"
        lines.append(f"{utterance} {start} {stop} {phone} {around} {speaker}")
    Path(folder, "tokens.item").write_text("\n".join(lines) + "\n")
    for name, x in features.items():
        torch.save(x, Path(folder, f"{name}.pt"))


def measure_theirs(folder, context, kind, limits):
    """Returns the error that fastabx measures."""
    zerospeech_abx = import_extra("fastabx", "abx").zerospeech_abx
    group, speakers = (None if n == ALL else n for n in limits)
    return zerospeech_abx(
        Path(folder, "tokens.item"),
        folder,
        max_size_group=group,
        max_x_across=speakers,
        speaker=kind,
        context=context,
        frequency=100,
        device="cpu",
        progress=False,
    )


def compare(features, tokens, context, limits):
    """Returns the rows of a table: ours, and theirs."""
    ours = abx(features, tokens, *limits)
    with tempfile.TemporaryDirectory() as folder:
        write_items(features, tokens, folder)
        theirs = {k: measure_theirs(folder, context, k, limits) for k in KINDS}
        if context == "within" and limits == (ALL, 5):
            discophon = import_extra("discophon.abx", "abx")
            found = discophon.continuous_abx(
                Path(folder, "tokens.item"), folder, frequency=100
            )
            theirs |= {f"{k} (discophon)": found[f"{k}_speaker"] for k in KINDS}
    rows = []
    for name, error in theirs.items():
        own = ours[name.split()[0]]
        errors = [f"{100 * x:.4f}" for x in (own["value"], error)]
        rows.append([name, *errors, str(own["cells"])])
    return rows


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="logmel")
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--data", required=True, help="its $data_root")
    parser.add_argument("--recordings", type=int, default=200)
    help = "random frames in place of the features"
    parser.add_argument("--noise", action="store_true", help=help)
    return parser


def main(argv):
    """Prints a table per layer, codes, context and limits."""
    args = make_parser().parse_args(argv)
    names = "fastabx", "discophon", "torch"
    print(*(f"{name} {version(name)}" for name in names), sep=", ")
    encoder, about = load_encoder(args.encoder)
    for context in CONTEXTS:
        asked = args.manifest, "phones", context, args.recordings
        tokens = read_tokens(*asked)
        with tempfile.TemporaryDirectory() as folder:
            places = args.manifest, args.data, f"{folder}/store"
            encoded = encode_tokens(encoder, about, tokens, places)
            for layer, codes, features in encoded:
                if args.noise:
                    features = {
                        n: noise_like(n, x) for n, x in features.items()
                    }
                for limits in ((ALL, ALL), (ALL, 5), (10, 5)):
                    if context == "any" and limits != (10, 5):
                        continue  # millions of pairs
                    rows = compare(features, tokens, context, limits)
                    shown = ["all" if n == ALL else str(n) for n in limits]
                    print(
                        f"\n{layer}, {codes}; context: {context}; tokens and "
                        f"speakers: {', '.join(shown)}\n"
                    )
                    header = ["speakers", "here (%)", "theirs (%)", "cells"]
                    print(markdown_table(header, rows), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
