"""The command `speechbrain-sim`: export, publish, check, encode, decode."""

import argparse
import sys


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser("speechbrain-sim", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name, text, *positional):
        command = verbs.add_parser(name, help=text)
        for argument, about in positional:
            many = "+" if argument == "inputs" else None
            command.add_argument(argument, nargs=many, help=about)
        return command.add_argument

    run = ("run", "output folder of a recipe")
    source = ("source", "a run or model folder, or user/model on the Hub")
    option = verb(
        *("export", "turn a run into a model folder", run),
        ("folder", "where to"),
    )
    for kind in ("probe", "decoder"):
        option(
            f"--{kind}",
            action="append",
            default=[],
            metavar="RUN",
            help=f"take along the {kind}s in another run",
        )
    about = "a recording that may be given away"
    option("--example", metavar="FILE", help=about)
    about = "the training data, where they are not those of the run: "
    about += "ArtificialSpeech, LibriSpeech, Synthetic, or another name"
    option("--data", help=about)
    about = "of data with another name, and so of the weights, e.g. cc-by-4.0"
    option("--licence", help=about)

    option = verb(
        *("publish", "upload a model folder"),
        ("folder", "a folder that `export` made"),
        ("repo", "user/model on the Hugging Face Hub"),
    )
    option("--private", action="store_true")
    option("--dry-run", action="store_true", help="only print what it would do")

    option = verb("check", "verify a model", source)
    option("--revision", help="branch, tag or commit")

    for name, text, inputs in (
        ("encode", "audio files to files of latents", "audio files or folders"),
        ("decode", "files of latents to wav files", "latents or folders"),
    ):
        option = verb(name, text, source, ("inputs", inputs))
        option("--layer", required=True, help="e.g. module3")
        option("--out", required=True, metavar="FOLDER", help="where to")
        option("--device", default="cpu", help="cpu, cuda, ...")
        if name == "encode":
            about = "draw from the posteriors, rather than take means"
            option("--sample", action="store_true", help=about)
            option("--format", choices=["npy", "safetensors"], default="npy")
            option("--on-bad-audio", choices=["fail", "skip"], default="fail")
    return parser


def run(given):
    """Does what the command line asks for."""
    # here, since `--help` needs no torch
    if given.verb in ("encode", "decode"):
        from speechbrain_sim import convert

        places = (given.source, given.inputs, given.out, given.layer)
        if given.verb == "decode":
            wavs = convert.decode_files(*places, given.device)
            return print(f"{len(wavs)} wav files in {given.out}.")
        options = (given.format, given.sample, given.device, given.on_bad_audio)
        record, bad = convert.encode_files(*places, *options)
        for error in bad:
            print(f"Left out: {error}")
        return print(
            f"{len(record['files'])} recordings in {given.out}, {len(bad)} "
            f"left out: float32 (frames, {record['channels']}), a frame every "
            f"{record['hop']} samples at 16 kHz."
        )
    from speechbrain_sim.hub import publish

    if given.verb == "export":
        publish.export_model(
            given.run,
            given.folder,
            given.probe,
            given.decoder,
            given.example,
            given.data,
            given.licence,
        )
        print(f"Exported to {given.folder}.")
    elif given.verb == "publish":
        publish.publish_model(
            given.folder, given.repo, given.private, given.dry_run
        )
    else:
        for line in publish.check_model(given.source, revision=given.revision):
            print(line)


def main(argv=None):
    """Runs the command; an error that states what to do ends it in one line.

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
    arguments = make_parser().parse_args(argv)
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"speechbrain-sim: {error}")
    except KeyboardInterrupt:
        print(
            "speechbrain-sim: stopped; run it again to go on", file=sys.stderr
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
