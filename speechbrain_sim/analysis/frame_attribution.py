"""Which frames drive a class: attention and integrated gradients, beside cues.

A score is a distribution over the frames of an utterance: the attention of one
half, or the norm of the integrated gradients of a classifier of h. A cue is what
happens in the frames: peaks and valleys of pitch or intensity, words. Reference:
section 7 of the paper on textual and acoustic halves.
"""

import numpy as np
import torch
from scipy.signal import find_peaks

from speechbrain_sim.analysis.attribution import integrated_gradients
from speechbrain_sim.analysis.code_scores import over_recordings
from speechbrain_sim.analysis.half_probes import WHOLE
from speechbrain_sim.analysis.score_sheet import measured
from speechbrain_sim.console import Bar
from speechbrain_sim.data.acoustics import contours
from speechbrain_sim.data.labels import labels_of_frames

#: what scores are called
TEXTUAL, ACOUSTIC = "textual attention", "acoustic attention"
GRADIENTS = "integrated gradients of h"
#: utterances that are attributed, and of which strips are shown
MOST, SHOWN = 60, 3
#: how far a peak must stand out, in deviations of its contour
PROMINENCE = 0.5


def frame_gradients(function, h, baseline=None, steps=64):
    """Attributes the value of a function to the frames of one utterance.

    s_t = |g_t| / Σ |g_t'|, with the norm over channels of the integrated
    gradients g: time is kept.

    Arguments
    ---------
    function : callable
        (batch, time, channels) -> (batch,): the logit of a class.
    h, baseline : torch.Tensor
        Unpadded frames (time, channels); and what they are compared with, of the
        same shape, zeros by default.
    steps : int
        See `speechbrain_sim.analysis.attribution.integrated_gradients`.

    Returns
    -------
    scores, gap : (numpy.ndarray, float)
        (time,), which sum to 1; the error of the integration, relative.
    """
    start = None if baseline is None else baseline[None]
    found = integrated_gradients(function, h[None], start, steps)
    norms = found.values[0].norm(dim=1)
    if not norms.sum() > 0:  # nothing depends on the frames
        norms = torch.ones_like(norms)
    return (norms / norms.sum()).cpu().numpy(), float(found.gap[0])


def turning_points(contour, prominence=PROMINENCE):
    """Marks the peaks and valleys of a contour.

    Arguments
    ---------
    contour : numpy.ndarray
        (frames,), NaN where there is none, as of pitch in unvoiced frames: no
        peak is looked for across such a pause.
    prominence : float
        By how many deviations of the contour a peak stands out.

    Returns
    -------
    numpy.ndarray
        (frames,): 1 at a peak or a valley, else 0.

    Example
    -------
    >>> turning_points(np.array([0.0, 0, 3, 0, 0, -3, 0]))
    array([0., 0., 1., 0., 0., 1., 0.])
    """
    marks, there = np.zeros(len(contour)), np.isfinite(contour)
    if not there.any() or not (deviation := np.std(contour[there])) > 0:
        return marks
    ends = np.flatnonzero(np.diff(np.r_[False, there, False]))
    for first, last in ends.reshape(-1, 2):
        for sign in (1, -1):
            part = sign * contour[first:last] / deviation
            marks[first + find_peaks(part, prominence=prominence)[0]] = 1
    return marks


def acoustic_cues(wav, frames, geometry):
    """Marks peaks and valleys of pitch and of intensity at the frames of a layer.

    Arguments
    ---------
    wav : torch.Tensor
        (samples,) at 16 kHz.
    frames, geometry : int, (int, float)
        Of the utterance; see `Encoder.frame_geometry`.

    Returns
    -------
    dict of str to numpy.ndarray
        `pitch` and `intensity`, (frames,): see `turning_points`.
    """
    found = contours(wav)
    at, cues = labels_of_frames(frames, *geometry).numpy(), {}
    for name in "pitch", "intensity":
        contour = getattr(found, name).numpy()
        marks, cues[name] = (
            np.flatnonzero(turning_points(contour)),
            np.zeros(frames),
        )
        # of a slow layer, the frame that is nearest
        nearest = np.abs(at[:, None] - marks).argmin(0)
        cues[name][nearest] = 1
    return cues


def agreement(scores, cues, unit):
    """Compares distributions over frames with a cue.

    The dot product Σ_t s_t c_t of each utterance, mean over utterances; and the
    same over what a uniform distribution reaches (the mean of all shifts of s in
    time): 1 is no agreement.

    Arguments
    ---------
    scores, cues : list of numpy.ndarray
        Of each utterance, (frames,); scores sum to 1.
    unit : numpy.ndarray
        The recording of each utterance.

    Returns
    -------
    dict
        `value` and `interval` of the dot product, and `ratio`, the same of the
        ratio. Unmeasurable if no utterance has the cue.

    Example
    -------
    >>> found = agreement([np.array([0.5, 0.5])] * 2, [np.array([1, 0])] * 2, [0, 1])
    >>> found["value"], found["ratio"]["value"]
    (0.5, 1.0)
    """
    pairs = [*zip(scores, cues, strict=True)]
    dots = np.array([np.dot(s, c) for s, c in pairs])
    uniform = np.array([np.mean(c) for c in cues])
    ratio = over_recordings(dots, uniform, unit)
    return {**over_recordings(dots, np.ones(len(dots)), unit), "ratio": ratio}


def attribute(text_half, half, baseline, h):
    """Scores the frames of one utterance, by attention and by gradients.

    Arguments
    ---------
    text_half, half, baseline : TextHalf, UtteranceHalf, UtteranceHalf
        Of one layer, in eval mode: stage 1, stage 2, and the classifier of h
        itself (`coded=False`, without text), whose likeliest class is
        attributed, beginning at the mean of the layer.
    h : torch.Tensor
        Frames of the layer, unpadded, (time, channels).

    Returns
    -------
    scores, gap : (dict of str to numpy.ndarray, float)
        `TEXTUAL`, `ACOUSTIC` and `GRADIENTS`, (time,) each; see
        `frame_gradients`.
    """
    size, x = torch.tensor([len(h)]), h[None]
    with torch.no_grad():
        text = text_half.encode(x) if half.text_units else None
        _, attention = half(half.encode(x), size, text)
        logits, _ = baseline(baseline.encode(x), size)
    chosen = int(logits.argmax())

    def logit(x):
        return baseline(baseline.encode(x), size.expand(len(x)))[0][:, chosen]

    scores = {ACOUSTIC: attention.own[0].cpu().numpy()}
    if text is not None:
        scores = {TEXTUAL: attention.text[0].cpu().numpy(), **scores}
    start = baseline.mean.expand_as(h)
    scores[GRADIENTS], gap = frame_gradients(logit, h, start)
    return scores, gap


def measure_attribution(side, parts, cues_of, most=MOST):
    """Compares what drives a class with what happens in the frames.

    Arguments
    ---------
    side : Side
        Test part.
    parts : tuple
        The first three arguments of `attribute`.
    cues_of : callable
        (utterance, frames) -> name -> (frames,), from 0 to 1: see
        `acoustic_cues` and `speechbrain_sim.data.words.spoken_values`.
    most : int
        Utterances that are attributed: evenly spread.

    Returns
    -------
    dict
        `cues`: score -> cue -> `agreement`, or a `gap`; `gaps`, of the
        integration, of each utterance; `strips`: of some utterances, scores and
        cues of each frame, by their names.
    """
    chosen = np.unique(np.linspace(0, len(side.ids) - 1, most).astype(int))
    scores, cues, gaps, strips = {}, {}, [], {}
    for i in Bar(chosen.tolist(), "attribution", unit="utterance"):
        h, name = side.frames(WHOLE, i), side.ids[i]
        found, gap = attribute(*parts, h)
        known = cues_of(name, len(h))
        gaps.append(gap)
        for score, values in found.items():
            scores.setdefault(score, {})[i] = values
        for cue, marks in known.items():
            cues.setdefault(cue, {})[i] = marks
        if len(strips) < SHOWN:
            rows = {**found, **known}.items()
            strips[name] = {n: x.round(5).tolist() for n, x in rows}

    def compare(score, cue):
        pairs = [[of[i] for i in cue] for of in (score, cue)]
        return agreement(*pairs, [side.recordings[i] for i in cue])

    compared = {
        name: {cue: measured(compare, score, of) for cue, of in cues.items()}
        for name, score in scores.items()
    }
    return {"cues": compared, "gaps": gaps, "strips": strips}
