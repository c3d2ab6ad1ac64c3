"""torchrun with its own words, whose workers are forked, not started anew."""

import runpy
import sys
from pathlib import Path

from torch.distributed.launcher import elastic_launch
from torch.distributed.run import config_from_args, parse_args


def work(script, words, is_module):
    """Does in a worker what torchrun starts a script, or a module, for."""
    sys.argv = [script, *words]
    if is_module:
        return runpy.run_module(script, run_name="__main__", alter_sys=True)
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    given = parse_args(sys.argv[1:])
    config, _, _ = config_from_args(given)
    config.start_method = "fork"
    words = given.training_script_args
    elastic_launch(config, work)(given.training_script, words, given.module)
