"""Texts and phones of manifests -> targets of CTC; frames -> texts; errors.

Labels are kept by SpeechBrain's `CTCTextEncoder`, the blank at 0, and errors are
counted by its `ErrorRateStats`.
"""

import io
import re
import unicodedata
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import torch
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_sim.data.phones import SILENCES, name_phones
from speechbrain_sim.data.tables import read_manifest

#: what a transcript is made of: the first is its characters, and spaces
TARGETS = CHARS, PHONES, WORDS, PIECES = "chars", "phones", "words", "pieces"
#: columns that may hold a text, the first of them that there is counts
TEXTS = "text", "transcript", "syllable", "word", "digit"
#: where sentencepiece puts its mark of a word's beginning
MARK = "\u2581"
BLANK = 0


class ErrorRate(NamedTuple):
    """Edits per symbol of the reference.

    Arguments
    ---------
    percent : float
        Of all utterances together: 100 times edits / length.
    edits, lengths : list of int
        Of each utterance, in the order of the predictions.
    """

    percent: float
    edits: list
    lengths: list


class Labels:
    """The labels of transcripts, and texts from their numbers.

    Arguments
    ---------
    target : str
        "chars", "phones", "words" or "pieces".
    symbols : list of str
        All labels but the blank; the number of the first is 1.

    Example
    -------
    >>> labels = Labels("chars", [" ", "A", "B"])
    >>> labels.symbols
    ['<blank>', ' ', 'A', 'B']
    >>> labels.text([2, 3, 1, 2])
    'AB A'
    >>> scores = torch.eye(4)[[0, 2, 2, 0, 2, 3, 3]]  # (frames, labels)
    >>> labels.decode(scores[None], torch.tensor([6]))
    [[2, 2, 3]]
    """

    def __init__(self, target, symbols):
        self.target = target
        self.encoder = CTCTextEncoder()
        self.encoder.insert_blank(index=BLANK)
        self.encoder.update_from_iterable([symbols])
        self.encoder.expect_len(len(symbols) + 1)

    @property
    def symbols(self):
        """All labels, by number."""
        return [self.encoder.ind2lab[i] for i in range(len(self.encoder))]

    def tokens(self, ids):
        """Returns the labels of numbers: list of str."""
        return self.encoder.decode_ndim([int(i) for i in ids])

    def text(self, ids):
        """Returns the text of numbers; words and phones with spaces between."""
        tokens = self.tokens(ids)
        if self.target in (PHONES, WORDS):
            return " ".join(tokens)
        return " ".join("".join(tokens).replace(MARK, " ").split())

    def decode(self, scores, lengths):
        """Returns the labels of the best path through each utterance.

        Arguments
        ---------
        scores : torch.Tensor
            (batch, time, labels): log-probabilities, or logits.
        lengths : torch.Tensor
            Frames of each utterance, (batch,).
        """
        share = lengths.cpu().double() / scores.shape[1]
        return ctc_greedy_decode(scores.cpu(), share, BLANK)


class Targets(NamedTuple):
    """Labels, and by part and utterance a transcript's numbers, (labels,)."""

    labels: Labels
    ids: dict


def read_targets(
    manifests, target, text=None, frames=None, data_folder=None, vocabulary=100
):
    r"""Reads the transcripts of manifests as targets of CTC.

    Texts are as `normalise` returns them. Phones are the labels of each 10 ms
    without repeats and silence, so that one that follows itself is one.

    Arguments
    ---------
    manifests : dict of str to str or Path
        Part to manifest; labels are those of the part "train".
    target : str
        "chars", "phones", "words", or "pieces": those of a unigram model of
        sentencepiece, fitted on the training part.
    text : str, optional
        Column of the text; the first of `TEXTS` that there is, by default.
    frames : callable, optional
        Samples at 16 kHz -> frames; utterances are compared with it.
    data_folder : str or Path, optional
        Of the audio; needed with `frames` if manifests were not prepared here.
    vocabulary : int
        Most pieces, of "pieces".

    Returns
    -------
    Targets

    Raises
    ------
    ValueError
        For an empty transcript, one longer than its frames, an unknown label.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> _ = path.write_text("ID,wav,digit\na,a.wav,7\nb,b.wav,3\n")
    >>> labels, ids = read_targets({"train": path}, "words")
    >>> labels.symbols, ids
    (['<blank>', '3', '7'], {'train': {'a': tensor([2]), 'b': tensor([1])}})
    """
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, not one of {TARGETS}.")
    rows = {
        (part, name): row
        for part, path in manifests.items()
        for name, row in read_manifest(path, data_folder).items()
    }
    texts = _transcripts(rows, manifests, target, text)
    training = [texts[part, name] for part, name in rows if part == "train"]
    symbols, split = _split(target, training, vocabulary)
    targets = Targets(Labels(target, symbols), {part: {} for part in manifests})
    known = set(symbols)
    for (part, name), row in rows.items():
        tokens = split(texts[part, name])
        place = f"{manifests[part]}, {name}"
        _check(place, tokens, known, row, frames, target)
        ids = targets.labels.encoder.encode_sequence(tokens)
        targets.ids[part][name] = torch.tensor(ids, dtype=torch.int64)
    return targets


def normalise(text):
    """Returns a text in upper case, without punctuation but apostrophes.

    Example
    -------
    >>> normalise("“Well-known”, isn’t it?")
    "WELL KNOWN ISN'T IT"
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").upper()
    text = re.sub(r"[\s\u2010-\u2015_/-]+", " ", text)
    kept = [c for c in text if c in "' " or unicodedata.category(c)[0] in "LMN"]
    return " ".join("".join(kept).split())


def frames_needed(labels):
    """Returns the fewest frames for a sequence: its length, and its repeats.

    Example
    -------
    >>> frames_needed("HELLO")
    6
    """
    labels = list(labels)
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def error_rates(predictions, true, labels):
    """Counts the errors of predictions: substitutions, deletions, insertions.

    Arguments
    ---------
    predictions, true : dict of str to list of int, or tensor
        Utterance to numbers of labels, see `Labels.decode` and `Targets`. What
        is predicted counts.
    labels : Labels
        Their texts.

    Returns
    -------
    dict of str to ErrorRate
        "PER" of phones; "WER" of words; "WER" and "CER" of characters and
        pieces. Spaces between words are characters, as in SpeechBrain.

    Example
    -------
    >>> error_rates({"a": [1]}, {"a": [1, 2]}, Labels("words", ["A", "B"]))
    {'WER': ErrorRate(percent=50.0, edits=[1], lengths=[2])}
    """
    names = list(predictions)
    pairs = [[labels.text(x[n]) for n in names] for x in (predictions, true)]
    kinds = {"PER" if labels.target == PHONES else "WER": str.split}
    if labels.target in (CHARS, PIECES):
        kinds["CER"] = list
    return {
        kind: _error_rate(names, *(map(split, texts) for texts in pairs))
        for kind, split in kinds.items()
    }


def _error_rate(names, predicted, true):
    stats = ErrorRateStats()
    stats.append(names, list(predicted), list(true))
    edits = [score["num_edits"] for score in stats.scores]
    lengths = [score["num_ref_tokens"] for score in stats.scores]
    return ErrorRate(float(stats.summarize("error_rate")), edits, lengths)


def text_column(columns, text=None):
    """Returns the column of a text: the first of `TEXTS`, unless it is given."""
    return text or next((name for name in TEXTS if name in columns), TEXTS[0])


def _transcripts(rows, manifests, target, text):
    """By part and utterance a text, or names of phones between spaces."""
    column = text_column(next(iter(rows.values())), text)
    column = PHONES if target == PHONES else column
    for (part, _), row in rows.items():
        if column not in row:
            remedy = f"name it by --text_column, or --target {PHONES}"
            if target == PHONES:
                remedy = f"choose another --target, such as {WORDS}"
            raise ValueError(
                f"{manifests[part]} has no column '{column}', of {target}; it "
                f"has {', '.join(row)}: {remedy}."
            )
    if target != PHONES:
        return {name: normalise(row[column]) for name, row in rows.items()}
    classes = sorted({c for row in rows.values() for c in row[PHONES].split()})
    folder = Path(next(iter(manifests.values()))).parent
    names = dict(
        zip(classes, name_phones(PHONES, classes, folder), strict=True)
    )
    silent = {c for c, n in names.items() if n.lower() in SILENCES} or {"0"}
    return {
        name: " ".join(
            names[phone]
            for phone, _ in groupby(row[PHONES].split())
            if phone not in silent
        )
        for name, row in rows.items()
    }


def _split(target, texts, vocabulary):
    """The labels of training texts, in order, and what splits a text."""
    split = list if target == CHARS else str.split
    if target != PIECES:
        return sorted({token for text in texts for token in split(text)}), split
    model, characters = io.BytesIO(), {MARK, *"".join(texts)} - {" "}
    if vocabulary <= len(characters):  # one is for what is unknown
        raise ValueError(
            f"--pieces {vocabulary} is too few for the {len(characters)} "
            f"characters of the texts: give {len(characters) + 1} or more."
        )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(texts)),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(pieces.get_piece_size())
    known = [pieces.id_to_piece(i) for i in numbers if not pieces.is_unknown(i)]
    return known, lambda text: pieces.encode(text, out_type=str)


def _check(where, tokens, known, row, frames, target):
    """Raises for a transcript that cannot be a target of CTC."""
    if not tokens:
        raise ValueError(
            f"{where} has an empty transcript: give it one, or remove the "
            f"utterance from the corpus."
        )
    if unknown := [token for token in tokens if token not in known]:
        raise ValueError(
            f"{where} has {unknown[0]!r}, which no transcript of the training "
            f"part has: correct it, or put such an utterance into the training "
            f"part{f', or --target {CHARS}' * (target != CHARS)}."
        )
    if frames is None:
        return
    needed, given = frames_needed(tokens), frames(row["num_samples"])
    if needed > given:
        raise ValueError(
            f"{where}: CTC needs {needed} frames for its {len(tokens)} labels "
            f"and their repeats, and there are {given}: choose a layer with "
            f"more frames, words or pieces as --target, or remove the utterance."
        )
