"""The command `speechbrain-sim`: export, publish and check models."""

import argparse
import sys


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser("speechbrain-sim", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    export = verbs.add_parser(
        "export", help="turn a recipe's output folder into a model folder"
    )
    export.add_argument("run", help="output folder of a recipe")
    export.add_argument("folder", help="where to")
    export.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="RUN",
        help="take along the probes in an output folder of recipes/probe.py",
    )
    export.add_argument(
        "--decoder",
        action="append",
        default=[],
        metavar="RUN",
        help="take along the decoder in an output folder of recipes/decode.py",
    )
    export.add_argument(
        "--example", metavar="FILE", help="a recording that may be given away"
    )
    export.add_argument(
        "--data",
        help="the training data, where they are not what the run says: "
        "ArtificialSpeech, LibriSpeech, Synthetic, or another name",
    )
    export.add_argument(
        "--licence",
        help="of data with another name, and so of the weights, e.g. cc-by-4.0",
    )

    publish = verbs.add_parser("publish", help="upload a model folder")
    publish.add_argument("folder", help="a folder that `export` made")
    publish.add_argument("repo", help="user/model on the Hugging Face Hub")
    publish.add_argument("--private", action="store_true")
    publish.add_argument(
        "--dry-run", action="store_true", help="say what would be done"
    )

    check = verbs.add_parser("check", help="verify a model")
    check.add_argument("source", help="a folder, or user/model on the Hub")
    check.add_argument("--revision", help="branch, tag or commit")
    return parser


def run(arguments):
    """Does what the command line says."""
    # here, since `--help` needs no torch
    from speechbrain_sim.hub.publish import (
        check_model,
        export_model,
        publish_model,
    )

    if arguments.verb == "export":
        export_model(
            arguments.run,
            arguments.folder,
            arguments.probe,
            arguments.decoder,
            arguments.example,
            arguments.data,
            arguments.licence,
        )
        print(f"Exported to {arguments.folder}.")
    elif arguments.verb == "publish":
        publish_model(
            arguments.folder,
            arguments.repo,
            arguments.private,
            arguments.dry_run,
        )
    else:
        for line in check_model(arguments.source, revision=arguments.revision):
            print(line)


def main(argv=None):
    """Runs the command; an error that says what to do ends it in one line.

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
