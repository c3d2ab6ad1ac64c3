"""Optional and slow libraries, imported only where they are used."""

import sys
from functools import wraps
from importlib import import_module

import torch


def import_extra(module, extra):
    """Imports an optional library; the ImportError names the extra it needs."""
    try:
        return import_module(module)
    except ImportError as error:
        package = f"'speechbrain-sim[{extra}]'"
        raise ImportError(
            f"{module} is missing: pip install {package}"
        ) from error


def not_compiled(function):
    """Leaves a function out of torch.compile, as torch.compiler.disable does.

    That one imports the compiler, for more than a second, when it decorates.
    """

    @wraps(function)
    def call(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:  # nothing is compiled
            return function(*args, **kwargs)
        return torch.compiler.disable(function)(*args, **kwargs)

    return call
