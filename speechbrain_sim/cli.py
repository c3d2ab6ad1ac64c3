"""The command `speechbrain-sim`: export, check, encode, decode, features, ..."""

import argparse
import json
import logging
import os
import re
import sys
import traceback
from pathlib import Path

from speechbrain_sim import __version__


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser("speechbrain-sim", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    version = f"%(prog)s {__version__}"
    parser.add_argument("--version", action="version", version=version)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name, text, **positional):
        command = verbs.add_parser(name, help=text)
        for argument, about in positional.items():
            many = "+" if argument == "inputs" else None
            command.add_argument(argument, nargs=many, help=about)
        return command.add_argument

    run = "output folder of a recipe"
    source = "a run, a model, sim-small, or user/model"
    option = verb("export", "turn a run into a model", run=run, folder="new")
    many = {"action": "append", "default": []}
    for kind in ("--probe", "--decoder"):
        option(kind, metavar="RUN", help=run, **many)
    option("--onnx", metavar="LAYER", help="as ONNX, too", **many)
    given = "audio that may be given away"
    option("--example", metavar="FILE", help=given, **many)
    option("--half", action="store_true", help="weights in half precision")
    option("--data", help="training data, if not those of the run")
    option("--licence", help="of the data and so of the weights: cc-by-4.0")

    model = {"folder": "a folder that `export` made", "repo": "user/model"}
    option = verb("publish", "upload a model folder", **model)
    option("--private", action="store_true")
    option("--dry-run", action="store_true", help="only print what it would do")

    option = verb("check", "verify a model", source=source)
    option("--revision", help="branch, tag or commit")

    for name, text in {
        "encode": "audio files, or folders, to latents",
        "decode": "latents, or folders, to wav files",
    }.items():
        option = verb(name, text, source=source, inputs=text.split(" to ")[0])
        option("--layer", required=True, help="e.g. module3")
        option("--out", required=True, metavar="FOLDER", help="where to")
        option("--device", default="cpu", help="cpu, cuda, ...")
        if name == "encode":
            option("--sample", action="store_true", help="draws, not means")
            option("--format", choices=["npy", "safetensors"], default="npy")
            option("--on-bad-audio", choices=["fail", "skip"], default="fail")

    text = "the most active features of a file, by a bottleneck"
    option = verb("features", text, source=source, input="audio file")
    option("--layer", help="codes, e.g. module3.sae")
    option("--top", type=int, default=10, metavar="N", help="how many")
    option("--json", action="store_true", help="as json")
    option("--html", metavar="FILE", help="a page with sounds, too")

    _add_explore(verb)
    _add_plan(verb)
    return parser


def _add_explore(verb):
    """Adds the verb `explore`."""
    text = "a latent space in the browser, served on this machine only"
    option = verb("explore", text, inputs="a model, or two side by side")
    option("--files", nargs="+", default=[], help="audio files, or folders")
    option("--port", type=int, default=8000, help="0: any that is free")
    option("--no-browser", action="store_true", help="only print the address")
    option("--save", metavar="FILE", help="write a page without a server")


def _add_plan(verb):
    """Adds the verb `plan`."""
    text = "what training would cost, on how many processes"
    option = verb("plan", text, hparams="e.g. hparams/Synthetic/pretrain.yaml")
    option("--ranks", type=int, default=1, metavar="N", help="processes")
    option("--hours", type=float, default=1.0, help="of audio in the corpus")
    option("--device", default="cpu", help="where a few steps are measured")
    key = {"metavar": "KEY=VALUE", "help": "an option of the yaml"}
    option("--set", action="append", default=[], **key)


def run(given):
    """Does what the command line asks for; yields lines to print."""
    # here, since `--help` needs no torch
    alone = {"explore": explore, "features": list_features, "plan": make_plan}
    if given.verb in alone:
        return (yield from alone[given.verb](given))
    if given.verb in ("encode", "decode"):
        import torch

        from speechbrain_sim import convert
        from speechbrain_sim.config import check_device
        from speechbrain_sim.extraction import be_patient

        check_device(given.device)
        if "LOCAL_RANK" in os.environ:  # under torchrun
            torch.distributed.init_process_group("gloo")
            be_patient()
            if given.device == "cuda":
                given.device = f"cuda:{os.environ['LOCAL_RANK']}"
        places = (given.source, given.inputs, given.out, given.layer)
    else:
        from speechbrain_sim.hub import publish

    if given.verb == "decode":
        wavs = convert.decode_files(*places, given.device)
        yield f"{len(wavs)} wav files in {given.out}."
    elif given.verb == "encode":
        options = (given.format, given.sample, given.device, given.on_bad_audio)
        record, bad = convert.encode_files(*places, *options)
        yield from (f"Left out: {error}" for error in bad)
        yield (
            f"{len(record['files'])} recordings in {given.out}, {len(bad)} "
            f"left out: float32 (frames, {record['channels']}), a frame every "
            f"{record['hop']} samples at 16 kHz."
        )
    elif given.verb == "export":
        options = (given.example, given.data, given.licence, given.half)
        places = (given.run, given.folder, given.probe, given.decoder)
        if given.onnx:  # what cannot be exported is refused first
            from speechbrain_sim.integrations.onnx import export_onnx
            from speechbrain_sim.models.load import load_encoder

            encoder, _ = load_encoder(Path(given.run))
            for layer in given.onnx:
                encoder.check_layer(layer)
        publish.export_model(*places, *options)
        yield f"Exported to {given.folder}."
        for layer in given.onnx:
            path = f"{given.folder}/{layer}.onnx"
            export_onnx(load_encoder(Path(given.folder))[0], layer, path)
            yield f"Exported to {path}."
    elif given.verb == "publish":
        options = (given.private, given.dry_run)
        publish.publish_model(given.folder, given.repo, *options)
    else:
        yield from publish.check_model(given.source, revision=given.revision)


def explore(given):
    """Serves the explorer; yields its address."""
    from speechbrain_sim.explorer import command

    places = given.inputs, given.files, given.port
    yield from command.explore(*places, not given.no_browser, given.save)


def make_plan(given):
    """Yields the report of `speechbrain_sim.plan`."""
    from speechbrain_sim.config import check_device
    from speechbrain_sim.plan import plan

    check_device(given.device)
    options = dict(pair.partition("=")[::2] for pair in given.set)
    sizes = given.ranks, given.hours, given.device
    yield from plan(given.hparams, *sizes, **options)


def list_features(given):
    """Yields a table of the features of a file, or their json."""
    from speechbrain_sim.inference import SmoothInfoMax
    from speechbrain_sim.report.tables import markdown_table
    from speechbrain_sim.steering import coded_layer, top_features

    if given.top < 1:
        raise ValueError(f"--top is {given.top}: give 1 or more.")
    model = SmoothInfoMax.from_pretrained(given.source)
    layer = coded_layer(model, given.layer)
    latent = model.encode_file(given.input, model.encoder.origin(layer))
    found = top_features(model, given.input, layer, given.top, latent)
    if given.html:
        from speechbrain_sim.analysis.feature_pages import file_page

        file_page(model, given.input, layer, given.html, latent=latent)
    if given.json:
        return (yield json.dumps([x._asdict() for x in found], indent=2))
    header = (
        "feature,label,mean,active (%),peak,± posterior,at (s),from – to (s)"
    )
    rows = [
        [
            str(x.feature),
            x.name or "",
            f"{x.mean:.3g}",
            f"{100 * x.share:.1f}",
            f"{x.peak:.3g}",
            "—" if x.deviation is None else f"{x.deviation:.2g}",
            f"{x.at:.2f}",
            f"{x.start:.2f} – {x.stop:.2f}",
        ]
        for x in found
    ]
    yield markdown_table(header.split(","), rows)


def sentence(error):
    """Returns what an error that was raised on purpose states; else None.

    On purpose are those of files and devices, and what a `raise` statement
    raised, since its text is for readers. Others are bugs.
    """
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    # a DataLoader's worker puts its traceback into the text
    text = re.split(r"^[\w.]+(?:Error|Audio): ", text, flags=re.M)[-1].strip()
    kinds = ValueError, KeyError, ImportError, RuntimeError
    last = traceback.extract_tb(error.__traceback__)[-1].line or ""
    stated = isinstance(error, kinds) and last.startswith("raise ")
    return text if stated or isinstance(error, OSError) else None


def run_command(main, argv, name):
    """Runs `main(argv)`; an error that states what to do ends it in one line.

    The traceback is shown with `--debug`, and of bugs; `log.txt` has it anyway.

    Arguments
    ---------
    main : function
        Of the command.
    argv : list of str
        Its arguments.
    name : str
        What the line begins with.

    Example
    -------
    >>> def main(argv):
    ...     raise KeyError(f"There is no key {argv[0]}.")
    >>> run_command(main, ["x"], "pretrain.py")
    Traceback (most recent call last):
    SystemExit: pretrain.py: There is no key x.
    """
    try:
        main(argv)
    except KeyboardInterrupt:
        print(f"{name}: stopped; run it again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        text = sentence(error)
        if text is None or "--debug" in argv:
            raise
        logging.getLogger(__name__).debug("Exception:", exc_info=error)
        if isinstance(error, ConnectionError) and "LOCAL_RANK" in os.environ:
            # of a lost rank: the interpreter's own end would wait for it
            print(f"{name}: {text}", file=sys.stderr, flush=True)
            logging.shutdown()
            sys.stdout.flush()
            os._exit(1)
        sys.exit(f"{name}: {text}")


def main(argv=None):
    """Runs the command; see `run_command` for its errors.

    Arguments
    ---------
    argv : list of str, optional
        Arguments; those of the process by default.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> folder = str(example_folder(getfixture("tmp_path")))
    >>> main(["check", folder])
    Traceback (most recent call last):
    SystemExit: speechbrain-sim: ... holds no hyperparams.yaml: ...
    """

    def print_all(argv):
        first = os.environ.get("RANK", "0") == "0"  # under torchrun
        for line in run(make_parser().parse_args(argv)):
            if first:
                print(line)

    argv = sys.argv[1:] if argv is None else argv
    run_command(print_all, argv, "speechbrain-sim")


if __name__ == "__main__":
    main()
