"""Corpora: what each is, and its preparation in a file of its own."""

from typing import NamedTuple


class Corpus(NamedTuple):
    """A corpus, as the card of a model trained on it describes it.

    Arguments
    ---------
    name : str
        Its name.
    licence : str
        Identifier of its licence on the Hub; the weights are given under it.
    sentence : str
        What it holds, and who published it.
    paper_epochs : int, optional
        How long the paper trains on it; shorter runs are called reduced.
    """

    name: str
    licence: str
    sentence: str
    paper_epochs: int | None = None


UNKNOWN = (
    "Its licence is not known to this software: ask those who trained the "
    "model before you use it"
)

#: by the `corpus` of a yaml
CORPORA = {
    "ArtificialSpeech": Corpus(
        "Artificial speech set",
        "cc-by-nc-sa-4.0",
        "680 words for training and 171 for testing, of three syllables "
        "(consonants b, d, g; vowels a, i, u), by one speaker, published by "
        "Fabian Denoodt at "
        "https://github.com/fdenoodt/Artificial-Speech-Dataset. In the "
        "published split, 285 of the 360 syllables that probes are tested on "
        "are cut from words that encoders train on",
        1000,
    ),
    "LibriSpeech": Corpus(
        "LibriSpeech",
        "cc-by-4.0",
        "Read English audiobooks, published by Vassil Panayotov and others, "
        "2015, at https://www.openslr.org/12",
        100,
    ),
    "Synthetic": Corpus(
        "Synthetic speech",
        "apache-2.0",
        "Sentences made up by speechbrain-sim and read by the synthesiser "
        "espeak-ng in some of its voices: audio of our own, no recording of a "
        "person",
    ),
}


def corpus_of(training, name=None, licence=None):
    """Returns the corpus that an encoder was trained on.

    Arguments
    ---------
    training : dict
        The encoder's metadata of its training.
    name, licence : str, optional
        What holds instead; a name in `CORPORA` brings its licence along.

    Returns
    -------
    Corpus

    Example
    -------
    >>> corpus_of({"corpus": "Folder"}).licence
    'other'
    >>> corpus_of({"corpus": "Folder"}, "LibriSpeech").licence
    'cc-by-4.0'
    """
    name = name or training.get("corpus") or "data that are not named"
    stated = "As stated by those who trained the model"
    sentence = UNKNOWN if licence is None else stated
    known = CORPORA.get(name, Corpus(name, "other", sentence))
    return known._replace(licence=licence or known.licence)
