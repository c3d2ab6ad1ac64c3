"""Labels: what they belong to, and the 10 ms clock of those of frames."""

import torch

#: target of a frame or utterance that does not count
NO_LABEL = -1
#: samples at 16 kHz that a label of frames covers, and between two of them
WINDOW, HOP = 400, 160
#: what a label is of; a sequence is tokens with spaces between, as a transcript
KINDS = UTTERANCE, FRAMES, SEQUENCE = "utterance", "frames", "sequence"


def kind_of(label, label_kinds):
    """Returns what a label is of.

    Arguments
    ---------
    label, label_kinds : str, dict of str to str
        A column of the manifests; kinds of those not of whole utterances.

    Returns
    -------
    str
        "utterance", "frames" (one per 10 ms) or "sequence" (of tokens); a
        ValueError is raised for another kind.

    Example
    -------
    >>> kind_of("phones", {"phones": "frames"}), kind_of("speaker", {})
    ('frames', 'utterance')
    """
    kind = label_kinds.get(label, UTTERANCE)
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ValueError(f"label_kinds: '{label}' is {kind!r}, not of {kinds}.")
    return kind


def num_labels(num_samples):
    """Returns the number of labels of frames in so many samples at 16 kHz.

    Example
    -------
    >>> num_labels(399), num_labels(400), num_labels(16000)
    (0, 1, 98)
    """
    return max(0, 1 + (num_samples - WINDOW) // HOP)


def frames_of_labels(count, hop, center, frames=None, alignment="centre"):
    """Finds the frame that each label belongs to.

    Label i is centred at sample 160 i + 200: 25 ms windows without padding.
    Where a layer has a frame per label, it has one or two more of them than
    there are labels.

    Arguments
    ---------
    count : int
        Labels of the utterance.
    hop, center : int, float
        Geometry of the layer: frame j is centred at sample center + hop * j.
    frames : int, optional
        Frames of the utterance; none beyond it are returned.
    alignment : str
        "centre": the frame whose centre is nearest. "front": surplus frames
        are cut from the front, so that the last frame has the last label, as
        in the authors' release; needs `frames`. "end": they are cut from the
        end, so that the first frame has the first label.

    Returns
    -------
    torch.Tensor
        (count,), int64.

    Raises
    ------
    ValueError
        If the alignment is none of these.

    Example
    -------
    >>> frames_of_labels(3, hop=160, center=20)
    tensor([1, 2, 3])
    >>> frames_of_labels(3, 160, 20, frames=5, alignment="front")
    tensor([2, 3, 4])
    >>> frames_of_labels(3, 160, 20, frames=5, alignment="end")
    tensor([0, 1, 2])
    """
    labels = HOP * torch.arange(count)
    if alignment == "centre":
        at = ((labels + WINDOW / 2 - center) / hop).round().long()
    elif alignment == "front":
        at = frames - 1 - (labels.flip(0) / hop).round().long()
    elif alignment == "end":
        at = (labels / hop).round().long()
    else:
        kinds = "'centre', 'front' or 'end'"
        raise ValueError(f"alignment must be {kinds}, got {alignment!r}")
    return at.clamp(0, None if frames is None else frames - 1)


def labels_of_frames(frames, hop, center):
    """Finds the label whose centre is nearest to each frame.

    Arguments
    ---------
    frames : int
        Frames of the utterance.
    hop, center :
        See `frames_of_labels`.

    Returns
    -------
    torch.Tensor
        (frames,), int64; at the ends it may be -1, or beyond the last label.

    Example
    -------
    >>> labels_of_frames(4, hop=160, center=20)
    tensor([-1,  0,  1,  2])
    """
    at = center + hop * torch.arange(frames, dtype=torch.float64)
    return ((at - WINDOW / 2) / HOP).round().long()
