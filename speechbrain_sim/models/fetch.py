"""Where a model comes from: a folder here, or a repository on the Hub.

A folder never touches the network. What is fetched from the Hub comes from one
commit, and every error says in one sentence what happened.
"""

import os
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import errors, hf_hub_download
from huggingface_hub.utils import validate_repo_id
from speechbrain.utils.fetching import FetchFrom, FetchSource
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


#: what a name begins with that is meant for the Hub, whatever lies here
HUB = "hf://"


class HubError(OSError):
    """Something went wrong with the Hub; the message is one sentence."""


class LocalFolder:
    """A model's files in a folder.

    Arguments
    ---------
    folder : str or Path
        Where.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.name = str(folder)

    def fetch(self, filename):
        """Finds a file.

        Arguments
        ---------
        filename : str
            Its name.

        Returns
        -------
        Path

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        """
        path = self.folder / filename
        if not path.is_file():
            for old in ("encoder.ckpt", "encoder/encoder.ckpt"):
                if (self.folder / old).exists():
                    raise FileNotFoundError(
                        f"{self.folder} was written by an older version of "
                        f"speechbrain-sim, whose files this one does not "
                        f"read: train again."
                    )
            raise FileNotFoundError(
                f"{self.folder} holds no {filename}: give the output folder "
                f"of a recipe, or a folder that `speechbrain-sim export` "
                f"wrote, and copy all its files."
            )
        return path


class HubRepository:
    """A model's files in a repository of the Hub, through its cache.

    The first file decides the commit that all others are taken from.

    Arguments
    ---------
    name : str
        `user/model`.
    revision : str, optional
        Branch, tag or commit; `main` by default. A commit cannot change.
    token : str or bool, optional
        Of `huggingface_hub`; by default the one that is logged in.
    allow_network : bool
        Whether the Hub may be asked; otherwise the cache must do.
    cache_dir : str, optional
        The cache; by default that of `huggingface_hub`.
    """

    def __init__(
        self,
        name,
        revision=None,
        token=None,
        allow_network=True,
        cache_dir=None,
    ):
        self.name, self.revision = name, revision
        self.options = {
            "token": token,
            "local_files_only": not allow_network,
            "cache_dir": cache_dir,
        }

    def fetch(self, filename):
        """Downloads a file, or finds it in the cache.

        Arguments
        ---------
        filename : str
            Its name.

        Returns
        -------
        Path

        Raises
        ------
        HubError
            If it cannot be had; says why.
        """
        with hub_errors(self.name, self.revision, filename):
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
        A folder; or, where there is none, `user/model` on the Hub, which is
        said in a warning. `hf://user/model` is the Hub in any case, without
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
        If there is a folder, and a revision is asked for.

    Example
    -------
    >>> open_source(getfixture("tmp_path")).fetch("config.json")
    Traceback (most recent call last):
    FileNotFoundError: ... holds no config.json: ...
    >>> open_source("./results/sim")
    Traceback (most recent call last):
    FileNotFoundError: There is no folder ./results/sim, and ...
    >>> open_source("hf://user/model").name
    'user/model'
    """
    if isinstance(source, (LocalFolder, HubRepository)):
        return source
    asked = None
    if isinstance(source, FetchSource):
        asked, source = source
    text = str(source)
    if text.startswith(HUB):
        asked, text = FetchFrom.HUGGING_FACE, text.removeprefix(HUB)
    folder = Path(os.path.expanduser(source))  # never raises, unlike Path's
    if asked != FetchFrom.HUGGING_FACE and folder.is_dir():
        if options.get("revision"):
            raise ValueError(
                f"{text} is a folder, and has no revision "
                f"{options['revision']}: leave it out, or write {HUB}{text} "
                f"for the model of this name on the Hub."
            )
        return LocalFolder(folder)
    if (folder.parent / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no folder {text}: a model is {folder.parent} itself."
        )
    if asked == FetchFrom.LOCAL or not names_a_repository(text):
        raise FileNotFoundError(
            f"There is no folder {text}, and it is no name of a model on the "
            f"Hub, 'user/model': check the path."
        )
    if asked is None:
        if folder.parent.is_dir() or folder.is_file():
            raise FileNotFoundError(
                f"There is no folder {text}, though there is "
                f"{folder if folder.is_file() else folder.parent}: check the "
                f"path, or write {HUB}{text} for the model of this name on "
                f"the Hub."
            )
        logger.warning(
            f"There is no folder {text}: taking the model of this name from "
            f"the Hub. ({HUB}{text} says so without this warning.)"
        )
    return HubRepository(text, **options)


def names_a_repository(text):
    """Tells whether a text can be the name of a model on the Hub.

    Arguments
    ---------
    text : str
        Perhaps `user/model`.

    Returns
    -------
    bool

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
def hub_errors(name, revision=None, filename=None):
    """Turns whatever huggingface_hub raises into one sentence.

    Arguments
    ---------
    name : str
        The repository.
    revision, filename : str, optional
        What is fetched; without a filename, files are uploaded.

    Raises
    ------
    HubError
        Instead of the errors of huggingface_hub and of the client below it.
    """
    try:
        yield
    except HubError:  # is a sentence already
        raise
    except (
        errors.HTTPError,
        errors.EntryNotFoundError,
        OSError,
        RuntimeError,  # huggingface_hub's, of an upload that broke off
    ) as error:
        raise HubError(_sentence(error, name, revision, filename)) from error


def _sentence(error, name, revision, filename):
    """Says what happened."""
    if isinstance(error, errors.GatedRepoError):
        return (
            f"The model {name} is gated: accept its conditions on its page, "
            f"then log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"The Hub has no model {name} that you may see: check the name, "
            f"or log in with `hf auth login` if it is private."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The model {name} has no revision {revision}."
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return (
            f"The model {name} has no file {filename}: it was not made by "
            f"`speechbrain-sim export`, or is incomplete."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__
        why = (
            "the Hub may not be asked (offline)"
            if cause is None or isinstance(cause, errors.OfflineModeIsEnabled)
            else _refusal(cause)
        )
        return f"{filename} of {name} is not in the cache, and {why}."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{name} needs the Hub, which may not be asked (offline)."
    if isinstance(error, errors.HTTPError):
        return f"{name}: {_refusal(error)}."
    if filename is None:
        cause = error.__cause__ or error  # RuntimeErrors do not say why
        why = (
            _refusal(cause)
            if isinstance(cause, errors.HTTPError)
            else _reason(cause)
        )
        return (
            f"{name} could not be uploaded whole: {why}. Run it again, it "
            f"goes on."
        )
    # a download that broke off, a full disk, ...
    return (
        f"{filename} of {name} could not be fetched whole: {_reason(error)}; "
        f"try again."
    )


def _reason(error):
    """What an error says, or else its name."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _refusal(error):
    """Says what a request came to."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return f"the connection to the Hub failed ({_reason(error)})"
    if status == 401:
        return "the Hub does not know the token: log in with `hf auth login`"
    if status == 403:
        return (
            "the token may not do this: log in with one that may, "
            "`hf auth login`"
        )
    if status == 429:
        return "the Hub asks to slow down (429): try again in some minutes"
    if status >= 500:
        return f"the Hub has a problem of its own ({status}): try again later"
    return f"the Hub refuses the request ({status})"
