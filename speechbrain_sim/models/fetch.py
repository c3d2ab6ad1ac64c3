"""Where a model comes from: a folder here, or a repository on the Hub.

A folder never touches the network. What is fetched from the Hub comes from one
commit, and every error names the model and what to do.
"""

import os
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import errors, hf_hub_download
from huggingface_hub.utils import validate_repo_id
from speechbrain.utils.fetching import FetchFrom, FetchSource
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

#: begins a name that is meant for the Hub, whatever folders there are
HUB = "hf://"
LOGIN = "log in with `hf auth login`"
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
    """Something went wrong with the Hub; the message says what to do."""


class LocalFolder:
    """A model's files in a folder.

    Arguments
    ---------
    folder : str or Path
        Where.
    """

    def __init__(self, folder):
        self.folder, self.name = Path(folder), str(folder)

    def fetch(self, filename):
        """Returns the path of a file; FileNotFoundError if there is none."""
        path = self.folder / filename
        if path.is_file():
            return path
        remedy = (
            "give the output folder of a recipe, or a folder that "
            "`speechbrain-sim export` wrote, and copy all its files"
        )
        if [
            *self.folder.glob("encoder.ckpt"),
            *self.folder.glob("*/encoder.ckpt"),
        ]:
            remedy = "it is of an older version of speechbrain-sim: train again"
        raise FileNotFoundError(f"{self.folder} holds no {filename}: {remedy}.")


class HubRepository:
    """A model's files in a repository of the Hub, through its cache.

    The first file decides the commit that all others are taken from.

    Arguments
    ---------
    name : str
        `user/model`.
    revision : str, optional
        Branch, tag or commit; `main` by default. A commit cannot change.
    allow_network : bool
        Whether the Hub may be used; otherwise only the cache is.
    **options :
        `token` and `cache_dir` of `huggingface_hub`.
    """

    def __init__(self, name, revision=None, allow_network=True, **options):
        self.name, self.revision = name, revision
        self.options = {"local_files_only": not allow_network, **options}

    def fetch(self, filename):
        """Returns the path of a file in the cache; HubError if it fails."""
        with hub_errors(f"{filename} of {self.name} could not be fetched"):
            path = hf_hub_download(
                self.name, filename, revision=self.revision, **self.options
            )
        self.revision = Path(path).parent.name  # .../snapshots/<commit>/<file>
        return Path(path)


def open_source(source, **options):
    """Tells folders from repositories.

    Arguments
    ---------
    source : str, Path, FetchSource, LocalFolder or HubRepository
        A folder; or, where there is none, `user/model` on the Hub, which a
        warning states. `hf://user/model` is the Hub in any case, without
        one. What is open already is returned as it is.
    **options :
        `revision`, `token`, `allow_network`, `cache_dir`: see `HubRepository`.

    Returns
    -------
    LocalFolder or HubRepository

    Raises
    ------
    FileNotFoundError
        If it is no folder, and looks like a path.
    ValueError
        If it is a folder, and a revision is given.

    Example
    -------
    >>> open_source("hf://user/model").name
    'user/model'
    """
    if isinstance(source, (LocalFolder, HubRepository)):
        return source
    place = None
    if isinstance(source, FetchSource):
        place, source = source
    text = str(source)
    if text.startswith(HUB):
        place, text = FetchFrom.HUGGING_FACE, text.removeprefix(HUB)
    hint = f"write {HUB}{text} for the model of this name on the Hub"
    folder = Path(os.path.expanduser(source))  # never raises, unlike Path's
    if place != FetchFrom.HUGGING_FACE and folder.is_dir():
        if options.get("revision"):
            raise ValueError(
                f"{text} is a folder, and has no revision "
                f"{options['revision']}: leave it out, or {hint}."
            )
        return LocalFolder(folder)
    missing, there = f"There is no folder {text}", None
    if (folder.parent / "config.json").is_file():
        there = f"a model is {folder.parent} itself"
    elif place == FetchFrom.LOCAL or not names_a_repository(text):
        there = "and it is no 'user/model' on the Hub: check the path"
    elif place is None and (folder.is_file() or folder.parent.is_dir()):
        there = folder if folder.is_file() else folder.parent
        there = f"though there is {there}: check the path, or {hint}"
    if there:
        raise FileNotFoundError(f"{missing}, {there}.")
    if place is None:
        logger.warning(f"{missing}: it is taken from the Hub; {hint}.")
    return HubRepository(text, **options)


def names_a_repository(text):
    """Returns whether a text can be the name of a model on the Hub.

    Example
    -------
    >>> [names_a_repository(text) for text in ("a/b", "b", "a/b c", "../b")]
    [True, False, False, False]
    """
    try:
        validate_repo_id(text)
    except errors.HFValidationError:
        return False
    return text.count("/") == 1 and not text.startswith(".")


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
    except HubError:
        raise
    except (errors.HTTPError, OSError, RuntimeError) as error:
        vague = (errors.LocalEntryNotFoundError, RuntimeError)
        cause = error.__cause__ if isinstance(error, vague) else None
        cause = cause or error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        known = [REMEDIES[k] for k in type(cause).__mro__ if k in REMEDIES]
        known.append(REMEDIES.get(status, remedy))
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise HubError(f"{what}: {reason.rstrip('.')}. {known[0]}.") from error
