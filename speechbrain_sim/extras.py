"""Optional libraries, imported only where they are used."""

from importlib import import_module


def import_extra(module, extra):
    """Imports an optional library; the ImportError names the extra it needs."""
    try:
        return import_module(module)
    except ImportError as error:
        package = f"'speechbrain-sim[{extra}]'"
        raise ImportError(
            f"{module} is missing: pip install {package}"
        ) from error
