"""Makes the model in the box: trains it, exports it, and writes its numbers.

    python recipes/box.py hparams/Synthetic/box.yaml

A study, see recipes/study.py, whose first system `inside` is exported into the
package under its own name: in half precision, with its probes, its decoders and
the two recordings of `walk`. Then the hashes of its files, and its table in
README.md, are written anew. Started again, it is resumed.
"""

import io
import re
import sys
import zipfile
from operator import eq
from pathlib import Path

import study

from speechbrain_sim.cli import run_command
from speechbrain_sim.data.tables import audio_of, read_manifest
from speechbrain_sim.files import sha256, write_text
from speechbrain_sim.hub.publish import export_model
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.fetch import BOX
from speechbrain_sim.models.format import DECODER, PROBE, parts_of
from speechbrain_sim.report.tables import markdown_table, with_interval

README = Path(__file__).resolve().parent.parent / "README.md"
#: what the table in README.md stands between
BEGIN, END = "<!-- make box -->\n", "<!-- end of make box -->\n"
#: bytes of all files in a wheel, and predictions that rounding leaves as they were
LARGEST, UNCHANGED = 3_000_000, 0.98


def examples(hparams):
    """Maps two test recordings, those of `walk`, to the transcript of each."""
    places = hparams["clips_csv"], hparams["data_folder"]
    rows, paths = read_manifest(*places), audio_of(*places)
    begins = hparams["walk"] or list(rows)[:2]
    names = [next(n for n in rows if n.startswith(str(b))) for b in begins]
    return {paths[name]: rows[name]["transcript"] for name in names}


def check(full, half, hparams):
    """Raises a ValueError if a model is too large, or predicts otherwise."""
    with zipfile.ZipFile(io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in half.iterdir():
            wheel.write(path)
        size = sum(file.compress_size for file in wheel.filelist)
    print(f"\n{half}: {size / 1e6:.2f} MB in a wheel, in half precision")
    if size > LARGEST:
        raise ValueError(
            f"{half} has {size} bytes in a wheel, more than {LARGEST}: give "
            f"fewer channels."
        )
    models = [SmoothInfoMax.from_pretrained(folder) for folder in (full, half)]
    paths = audio_of(hparams["clips_csv"], hparams["data_folder"]).values()
    for label in parts_of(models[0].mods, PROBE):
        same = []
        for path in paths:
            found = [model.classify_file(path, label) for model in models]
            same += map(eq, *(x.names()[0] for x in found))
        share = sum(same) / len(same)
        print(
            f"{100 * share:.2f} % of the {label} are named as before rounding"
        )
        if share < UNCHANGED:
            raise ValueError(
                f"{half}, in half precision, names only {100 * share:.1f} % of "
                f"the {label} as {full}: export it without half=True."
            )


def table(config):
    """Makes the table of README.md from a model's config.json."""
    rows = []
    for label, probe in parts_of(config["parts"], PROBE).items():
        layer, count = probe["best_layer"], len(probe["classes"])
        score = with_interval(probe["layers"][layer], 100, 1, key="accuracy")
        rows.append([f"{label}, {count} classes: accuracy", layer, score])
    decoders = parts_of(config["parts"], DECODER)
    classes = {decoder["class"] for decoder in decoders.values()}
    audible = classes <= {"SpectrogramDecoder"}
    what = "variance of log-mel" if audible else "energy"
    shares = [100 * x["valid"]["explained"] for x in decoders.values()]
    shares = " / ".join(str(round(share)) for share in shares)
    rows.append([f"decoders: {what} given back", " / ".join(decoders), shares])
    return markdown_table(["sim-small", "layer", "%"], rows)


def write_numbers(folder, config):
    """Writes the hashes of a model's files, and the table in README.md."""
    files = sorted(path for path in folder.iterdir())
    lines = [f"{sha256(path)}  {folder.name}/{path.name}\n" for path in files]
    write_text(folder.with_suffix(".sha256"), "".join(lines))
    text, there = README.read_text(encoding="utf-8"), f"{BEGIN}(.*?){END}"
    made = f"{BEGIN}\n{table(config)}\n\n{END}"
    write_text(README, re.sub(there, lambda _: made, text, flags=re.S))


def main(argv):
    """Runs the study with a command line, and makes the model of it."""
    hparams = study.main(argv)
    if hparams["output_folder"].endswith("_debug"):
        return  # a trial run does not replace the model
    name, out = hparams["inside"][0], Path(hparams["output_folder"])
    run = out / f"{name}_1"
    # audible ones, where there are any
    decoders = list(run.glob("spectrogram_*")) or run.glob("decoder_*")
    parts = [run / "probe"], sorted(decoders), examples(hparams)
    full, half = out / "full" / name, out / "half" / name
    export_model(run, full, *parts)
    export_model(run, half, *parts, half=True)
    check(full, half, hparams)
    config = export_model(run, BOX / name, *parts, half=True)
    write_numbers(BOX / name, config)
    print(f"Written to {BOX / name} and {README}:\n\n{table(config)}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "box.py")
