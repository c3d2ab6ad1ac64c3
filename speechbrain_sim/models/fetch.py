"""Where a model comes from: this package, a folder, or a repository on the Hub.

The first two never touch the network. What is fetched from the Hub comes from one
commit, and every error names the model and what to do.
"""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download
from huggingface_hub.utils import validate_repo_id
from speechbrain.utils.fetching import FetchFrom, FetchSource
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

#: where the models are that come with this package, their names, for messages
BOX = Path(__file__).parents[1] / "box"
BUILT_IN = sorted(path.name for path in BOX.iterdir() if path.is_dir())
THERE = f"built in: {', '.join(BUILT_IN)}"
#: begins a name that is meant for the Hub, whatever folders there are
HUB = "hf://"
LOGIN = "log in with `hf auth login`"
#: what folders of older versions hold
FORMER = ("encoder.ckpt", "*/encoder.ckpt")
#: kind of error, or status of a response -> what to do
REMEDIES = {
    errors.GatedRepoError: f"Accept its conditions on its page, then {LOGIN}",
    errors.RepositoryNotFoundError: f"Check the name, or {LOGIN}",
    errors.RevisionNotFoundError: "Check the revision",
    errors.RemoteEntryNotFoundError: "Was it made by `speechbrain-sim export`?",
    errors.OfflineModeIsEnabled: "Go online, or fetch it before",
    401: f"Please {LOGIN}",
    403: f"Please {LOGIN}, with a token that may do this",
    429: "Try again in some minutes",
}


class HubError(OSError):
    """Something went wrong with the Hub; the message names the remedy."""


class LocalFolder:
    """A model's files in a folder."""

    def __init__(self, folder):
        self.folder, self.name = Path(folder), str(folder)

    def fetch(self, filename):
        """Returns the path of a file; FileNotFoundError if there is none."""
        path = self.folder / filename
        if path.is_file():
            return path
        remedy = "give the folder of a run or an export, with all its files"
        if any(any(self.folder.glob(former)) for former in FORMER):
            remedy = "it is of an older version of speechbrain-sim: train again"
        raise FileNotFoundError(f"{self.folder} holds no {filename}: {remedy}.")


class HubRepository:
    """A model's files in a repository of the Hub, through its cache.

    The first file decides the commit that all others are taken from. `options`
    are those of `huggingface_hub.hf_hub_download`.
    """

    def __init__(self, name, **options):
        self.name, self.options = name, options

    def fetch(self, filename, **options):
        """Returns the path of a file in the cache; HubError if it fails."""
        options = {**self.options, **options}
        with hub_errors(f"{filename} of {self.name} could not be fetched"):
            path = Path(hf_hub_download(self.name, filename, **options))
        # .../snapshots/<commit>/<file>
        self.options["revision"] = path.parent.name
        return path

    def fetch_again(self, filename, problem):
        """Fetches a file that is damaged in the cache, where that is allowed."""
        if self.options.get("local_files_only") or constants.HF_HUB_OFFLINE:
            return self.fetch(filename)
        logger.warning(f"{problem}: it is fetched again.")
        return self.fetch(filename, force_download=True)


def open_source(
    source,
    revision=None,
    token=None,
    allow_network=True,
    cache_dir=None,
    local_files_only=False,
):
    """Opens a built-in model, a folder, or a repository of the Hub.

    Arguments
    ---------
    source : str, Path, FetchSource, LocalFolder or HubRepository
        A name in `BUILT_IN`; a folder; or, where there is none, `user/model` on
        the Hub, with a warning. In any case, `./sim-small` and a Path are a
        folder, and `hf://user/model` is on the Hub.
    revision, token, cache_dir : str, optional
        Of the Hub: branch, tag or commit; see `huggingface_hub.hf_hub_download`.
    allow_network, local_files_only : bool
        Whether the Hub may be used; whether only its cache is.

    Returns
    -------
    LocalFolder or HubRepository
        A FileNotFoundError if it looks like a path, and is no folder; a
        ValueError if there is a revision, and it is not on the Hub.

    Example
    -------
    >>> open_source("hf://user/model").name
    'user/model'
    """
    if isinstance(source, (LocalFolder, HubRepository)):
        return source
    if source in BUILT_IN:
        return _open_built_in(source, revision)
    place, text = source if isinstance(source, FetchSource) else (None, source)
    folder, text = Path(os.path.expanduser(text)), str(text)  # never raises
    if text.startswith(HUB):
        place, text = FetchFrom.HUGGING_FACE, text.removeprefix(HUB)
    hint = f"write {HUB}{text} for the model of this name on the Hub"
    if place != FetchFrom.HUGGING_FACE and folder.is_dir():
        if revision:
            raise ValueError(f"{text} has no revision {revision}: {hint}.")
        return LocalFolder(folder)
    missing = f"There is no folder {text}"
    near = folder if folder.is_file() else folder.parent
    if (folder.parent / "config.json").is_file():
        missing += f", a model is {folder.parent} itself."
    elif place == FetchFrom.LOCAL or not names_a_repository(text):
        missing += f", and it is no 'user/model' on the Hub; {THERE}."
    elif place is None and near.exists():
        missing += f", though there is {near}: check the path, or {hint}."
    else:
        if place is None:
            logger.warning(f"{missing}: it is taken from the Hub; {hint}.")
        options = {"token": token, "cache_dir": cache_dir, "revision": revision}
        options["local_files_only"] = local_files_only or not allow_network
        return HubRepository(text, **options)
    raise FileNotFoundError(missing)


def _open_built_in(name, revision):
    """Opens a model of this package; warns of a folder with its name."""
    folder = f"the folder of this name is ./{name}"
    if revision:
        raise ValueError(f"{name} is built in, without revisions; {folder}.")
    if os.path.isdir(name):
        logger.warning(f"{name} is the model that is built in; {folder}.")
    return LocalFolder(BOX / name)


def names_a_repository(text):
    """Returns whether a text can be the name of a model on the Hub.

    Example
    -------
    >>> [names_a_repository(text) for text in ("a/b", "b", "a/b c", "../b")]
    [True, False, False, False]
    """
    with suppress(errors.HFValidationError):
        validate_repo_id(text)
        return text.count("/") == 1 and not text.startswith(".")
    return False


@contextmanager
def hub_errors(what, remedy="Try again later"):
    """Turns whatever huggingface_hub raises into one line with a remedy.

    Arguments
    ---------
    what : str
        What failed, with the name of the model.
    remedy : str
        What to do if the error itself does not imply it.

    Raises
    ------
    HubError
        Instead of the errors of huggingface_hub and of the client below it.
    """
    try:
        yield
    except (errors.HTTPError, OSError, RuntimeError) as error:
        vague = (errors.LocalEntryNotFoundError, RuntimeError)
        cause = (isinstance(error, vague) and error.__cause__) or error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        keys = (*type(cause).__mro__, status)
        known = [REMEDIES[key] for key in keys if key in REMEDIES]
        reason = " ".join(str(cause).split()) or type(cause).__name__
        remedy = [*known, remedy][0]
        raise HubError(f"{what}: {reason.rstrip('.')}. {remedy}.") from error
