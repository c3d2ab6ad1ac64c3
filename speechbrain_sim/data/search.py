"""Files below a folder: which are taken, and why the others are not."""

from collections import Counter
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# libsndfile reads these, but they hold other data, too, or state no rate
_SELDOM_AUDIO = {"HTK", "MAT4", "MAT5", "RAW", "SDS"}
_NAMES = {*soundfile.available_formats()} - _SELDOM_AUDIO
_NAMES |= {"aif", "aifc", "bwf", "oga", "opus", "snd", "sph", "wave"}
#: endings of audio files that libsndfile reads, in lower case
AUDIO = tuple(sorted(f".{name.lower()}" for name in _NAMES))


def list_files(folder, endings=AUDIO):
    """Lists the files below a folder, and logs how many others there are.

    Hidden files and folders are left out. Links are followed; a folder is read
    once, by its own path if it has one here, and never one around `folder`.

    Arguments
    ---------
    folder : str or Path
        Searched with all folders below it.
    endings : collection of str
        Of the files that are taken, in any case.

    Returns
    -------
    list of Path
        Sorted by their paths below the folder.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in "b.WAV", "a.opus", "notes.txt", "._b.wav":
    ...     (folder / name).touch()
    >>> [path.name for path in list_files(folder)]
    ['a.opus', 'b.WAV']
    """
    folder, taken, others = Path(folder), [], Counter()
    seen = set(folder.resolve().parents)
    own, links, hidden = queues = [folder], [], []
    while queue := own or links or hidden:
        here, true = queue[0], queue.pop(0).resolve()
        secret = queue is hidden
        if true in seen:
            if not secret:
                others["links to folders read already, or around it"] += 1
            continue
        seen.add(true)
        try:
            for path in sorted(here.iterdir()):
                concealed = secret or path.name.startswith(".")
                is_link = path.is_symlink()
                if path.is_dir() and not (concealed and is_link):
                    queues[2 if concealed else is_link].append(path)
                elif concealed:
                    others["hidden"] += 1
                elif not path.is_file():
                    others["broken links" if is_link else "no files"] += 1
                elif path.suffix.lower() in endings:
                    taken.append(path)
                else:
                    others[f"*{path.suffix}"] += 1
        except PermissionError:
            others["folders without permission to read"] += 1
    if others:
        reasons = [f"{n} {reason}" for reason, n in others.most_common()]
        more = ", ..." * (len(reasons) > 9)
        left = f"left out: {', '.join(reasons[:9])}{more}"
        logger.info("%s: %d files are read; %s", folder, len(taken), left)
    return sorted(taken, key=lambda path: path.relative_to(folder).as_posix())
