"""Corpora: what each is, and its preparation in a file of its own."""

from pathlib import Path
from typing import NamedTuple

from speechbrain_sim.data.tables import audio_of
from speechbrain_sim.files import sha256


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
    use : str, optional
        What models of it are for, and what not.
    """

    name: str
    licence: str
    sentence: str
    paper_epochs: int | None = None
    use: str | None = None


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
    "FSDD": Corpus(
        "Free Spoken Digit Dataset",
        "cc-by-sa-4.0",
        "3,000 recordings at 8 kHz of the digits 0 to 9 in English, by six men, "
        "published by Zohar Jackson and others at "
        "https://github.com/Jakobovski/free-spoken-digit-dataset. Nothing in "
        "them lies above 4 kHz",
    ),
    "IEMOCAP": Corpus(
        "IEMOCAP",
        "other",
        "Scripted and improvised dialogues of ten actors, 12 hours, whose "
        "emotions were rated; published by Carlos Busso and others, 2008, and "
        "given to researchers by the University of Southern California, under "
        "a licence of its own: https://sail.usc.edu/iemocap",
    ),
    "LibriSpeech": Corpus(
        "LibriSpeech",
        "cc-by-4.0",
        "Read English audiobooks, published by Vassil Panayotov and others, "
        "2015, at https://www.openslr.org/12",
        100,
    ),
    "RAVDESS": Corpus(
        "RAVDESS",
        "cc-by-nc-sa-4.0",
        "Two sentences in eight emotions by 24 professional actors (12 female, "
        "12 male), published by Steven Livingstone and Frank Russo, 2018, at "
        "https://doi.org/10.5281/zenodo.1188976",
    ),
    "Synthetic": Corpus(
        "Synthetic speech",
        "apache-2.0",
        "Sentences made up by speechbrain-sim and read by the synthesiser "
        "espeak-ng in some of its voices: audio of our own, no recording of a "
        "person. espeak-ng is free software under GPL-3.0-or-later, which does "
        "not cover what it speaks, and none of it is in this model",
        use="It is for trying the software out, for teaching and for tests: "
        "its phones are those of English sentences in espeak-ng's voices. For "
        "people's speech, train on people's speech",
    ),
    "VocalSet": Corpus(
        "VocalSet",
        "cc-by-4.0",
        "10.1 hours of 20 professional singers (9 female, 11 male) and their "
        "vocal techniques, published by Julia Wilkins and others, 2018, at "
        "https://doi.org/10.5281/zenodo.1193956",
    ),
}


#: what a corpus is called whose name was not given
UNNAMED = "data that are not named"
#: beginnings of the sha256 of some files, which show that a corpus is this one
CONTENTS = {
    "ArtificialSpeech": {
        "bababa_1.wav": "a87f7dca3d912531",
        "gigubi_1.wav": "ec5e17e4f7a87c0e",
    },
    "FSDD": {
        "0_george_0.wav": "228ab63fccdf262d",
        "3_jackson_25.wav": "29c26ee768645143",
        "5_lucas_7.wav": "672017cc96c3c501",
        "7_nicolas_12.wav": "0822c8cdef1fc24f",
        "8_theo_33.wav": "5b5b65b3db7dc586",
        "9_yweweler_49.wav": "d80929528817a1b5",
    },
    "LibriSpeech": {
        "2412-153948-0000.flac": "47ced4dfe4fc60d8",
        "4051-11218-0044.flac": "90e83ed57f326256",
        "4397-15668-0003.flac": "d4694618e870fa4e",
        "5393-19218-0024.flac": "e9321807d59d6e84",
        "5678-43303-0032.flac": "fb5a64ade9f86c60",
        "6476-57446-0019.flac": "2054d2d37a7df288",
    },
    # no hash is known: name it, `export --data VocalSet`
    **{name: {} for name in ("IEMOCAP", "RAVDESS", "VocalSet")},
}


def recognise(name, manifests, data_folder):
    """Returns the name of a corpus, None if its audio is not shown to be it.

    A yaml's `corpus` states a layout, which any audio may have. So a known
    corpus needs files in its manifests whose hashes are known, and the
    synthetic one the record of how it was made; other names are returned as
    they are.
    """
    if name == "Synthetic":
        return name if Path(data_folder, "synthetic.json").is_file() else None
    if name not in CONTENTS:
        return name
    known, same = CONTENTS[name], []
    for manifest in filter(Path.exists, map(Path, manifests)):
        for wav in audio_of(manifest, data_folder).values():
            if digest := known.get(Path(wav).name):
                same.append(sha256(wav).startswith(digest))
    return name if same and all(same) else None


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
    >>> corpus_of({"corpus": None}).name
    'data that are not named'
    >>> corpus_of({"corpus": "Folder"}, "LibriSpeech").licence
    'cc-by-4.0'
    """
    name = name or training.get("corpus") or UNNAMED
    stated = "As stated by those who trained the model"
    sentence = UNKNOWN if licence is None else stated
    known = CORPORA.get(name, Corpus(name, "other", sentence))
    return known._replace(licence=licence or known.licence)
