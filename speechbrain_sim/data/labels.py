"""data.labels."""

import torch

#: target of a frame or utterance that does not count
NO_LABEL = -1


def frames_of_labels(num_labels, hop, center, frames=None, alignment="centre"):
    """Finds the frame that each label belongs to.

    Phone labels come one per 10 ms from 25 ms windows without padding: label i
    is centred at sample 160 i + 200. Where a layer has a frame per label, it
    has one or two more of them than there are labels.

    Arguments
    ---------
    num_labels : int
        Labels of the utterance.
    hop, center : int, float
        Geometry of the layer: frame j is centred at sample center + hop * j.
    frames : int, optional
        Frames of the utterance; none beyond it are named.
    alignment : str
        "centre": the frame whose centre is nearest. "front": surplus frames
        are cut from the front, so that the last frame has the last label, as
        the authors' release does; needs `frames`. "end": they are cut from the
        end, so that the first frame has the first label.

    Returns
    -------
    torch.Tensor
        (num_labels,), int64.

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
    labels = torch.arange(num_labels)
    if alignment == "centre":
        at = ((160 * labels + 200 - center) / hop).round().long()
    elif alignment == "front":
        before_last = (160 * labels.flip(0) / hop).round().long()
        at = frames - 1 - before_last
    elif alignment == "end":
        at = (160 * labels / hop).round().long()
    else:
        raise ValueError(
            f"alignment must be 'centre', 'front' or 'end', got {alignment!r}"
        )
    return at.clamp(0, None if frames is None else frames - 1)


#: samples at 16 kHz that a label covers, and between two labels
WINDOW, HOP = 400, 160


def num_labels(num_samples):
    """Number of labels of an utterance.

    Arguments
    ---------
    num_samples : int
        Its length at 16 kHz.

    Returns
    -------
    int

    Example
    -------
    >>> num_labels(399), num_labels(400), num_labels(16000)
    (0, 1, 98)
    """
    return max(0, 1 + (num_samples - WINDOW) // HOP)
