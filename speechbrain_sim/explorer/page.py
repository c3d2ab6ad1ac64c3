"""The explorer's page: the report's own page with a live part.

Its template extends the report's: a server fills the live part in, and without
one the page shows sounds that were decoded for it.
"""

from pathlib import Path

import torch

from speechbrain_sim.analysis.latents import Clips
from speechbrain_sim.analysis.listening import explore
from speechbrain_sim.analysis.study import System
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM, SpectrogramDecoder
from speechbrain_sim.files import write_bytes
from speechbrain_sim.models.format import DECODER, parts_of
from speechbrain_sim.report.page import Gap, Section, render_html

COMMAND = "speechbrain-sim explore MODEL"
#: how much of each recording is decoded for a page without a server
SECONDS = 3.0
#: sounds that need two recordings
BETWEEN = "Interpolation", "Swapped dimensions"


def explorer_page(title, sections=None, systems=(), command=COMMAND):
    """Returns the html of the explorer.

    Arguments
    ---------
    title : str
        Of the one or two models.
    sections : list of Section, optional
        What a page without a server shows, see `decoded_sections`; by default a
        server answers the page.
    systems : list of str
        The models' titles in the sections.
    command : str
        What makes the page live, which it states where it is not.

    Example
    -------
    >>> page = explorer_page("sim-small")
    >>> page.startswith("<!DOCTYPE html>"), "connect-src 'self'" in page
    (True, True)
    """
    live = sections is None
    note = "What the encoder makes of a recording, and how it sounds changed."
    more = {"folder": Path(__file__).parent, "page": "explorer.html"}
    more |= {"command": command, "live": live}
    shown = f"Explore {title}", note, sections or [], systems
    return render_html(*shown, **more)


def save_page(path, models, clips, command=COMMAND):
    """Writes the page without a server, of a few recordings.

    Arguments
    ---------
    path : str or Path
        The html file.
    models, clips, command :
        See `decoded_sections` and `explorer_page`.
    """
    sections, title = decoded_sections(models, clips), " | ".join(models)
    page = explorer_page(title, sections, list(models), command)
    write_bytes(path, page.encode(errors="backslashreplace"))


def decoded_sections(models, clips, seed=0):
    """Decodes what a page without a server plays.

    Arguments
    ---------
    models : dict of str to SmoothInfoMax
        Title -> model.
    clips : dict of str to torch.Tensor
        Name -> (samples,) at 16 kHz. The page goes from the first to the last;
        all are cut to the shortest, and to three seconds.
    seed : int
        Of the noise.

    Returns
    -------
    list of Section
        As the study's `speechbrain_sim.analysis.listening`.
    """
    samples = min(round(SECONDS * SAMPLE_RATE), *map(len, clips.values()))
    wavs = torch.stack([wav[:samples] for wav in clips.values()])
    made = Clips(list(clips), wavs, (0, len(wavs) - 1))
    items = []
    for name, model in models.items():
        decoders = parts_of(model.mods, DECODER)
        if not decoders:
            reason = "It has no decoder: train one with recipes/decode.py."
            items.append(Gap(name, reason, name))
        for layer in [n for n in model.layer_names if n in decoders]:
            items += _explorers(name, model, layer, decoders[layer], made, seed)
    if len(wavs) == 1:
        items = [i for i in items if i.title not in BETWEEN]
    sentence = "Move the sliders: a smooth space changes evenly, as speech."
    return [Section("listen", "Listen", sentence, items)]


def _explorers(name, model, layer, decoder, clips, seed):
    """Returns the study's explorers of one layer of a model."""
    kind = SPECTROGRAM if isinstance(decoder, SpectrogramDecoder) else WAVEFORM
    latents = {layer: model.encode_batch(clips.wavs, layer=layer)}
    wavs = clips.wavs.to(model.device)
    decoders = {kind: {layer: decoder}}
    system = System(name, model.encoder, wavs, latents, decoders, None, {})
    return explore(system, layer, clips, seed)
