"""The explorer: from a request to the sound, on this machine."""

import base64
import http.client
import json
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import soundfile

from benchmarks.measure import row
from speechbrain_sim.data.audio import SAMPLE_RATE, read_audio
from speechbrain_sim.explorer.clips import Clips
from speechbrain_sim.explorer.command import served
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.inference import SmoothInfoMax

#: of the recording, of which one word is cut out; what may pass in all from the
#: release of a slider until a sound is ready, the page's part included
SECONDS, ALLOWED = 0.64, 0.15
LAYERS = "module1", "module2", "module3"


def latency(requests=60):
    """One dimension is moved, request after request: each decodes 0.64 s.

    By the box's model; the time ends when the bytes of the sound are there.
    """
    model = SmoothInfoMax.from_pretrained("sim-small")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "word.wav")
        wav = read_audio(model.examples[0], 8000)
        wav = wav[: round(SECONDS * SAMPLE_RATE)]
        soundfile.write(path, wav, SAMPLE_RATE)
        clips = Clips([path])
        (clip,) = clips
        place = {"model": "m0", "clip": clip.id, "client": "bench"}
        times = []
        with served(Engine({"sim-small": model}, clips)) as address:
            host = urlsplit(address).netloc
            connection = http.client.HTTPConnection(host)
            for number in range(requests + len(LAYERS)):
                layer = LAYERS[number % len(LAYERS)]
                edit = {"kind": "set", "dimension": number, "deviations": 2}
                given = {**place, "layer": layer, "edits": [edit]}
                times.append(_timed(connection, given))
            connection.close()
    times = times[len(LAYERS) :]  # the first ones decode the original, too
    what = f"{SECONDS} s of sound"
    return [
        row(
            "Explorer: latency, as a share of 150 ms",
            f"explorer, request to {what}: {name}",
            "s",
            float(np.percentile(times, percent)),
            ALLOWED,
            float(np.percentile(times, percent)) / ALLOWED,
            "≤ 0.67",
        )
        for name, percent in (("median", 50), ("95th percentile", 95))
    ]


def _timed(connection, given):
    """Asks for a sound; returns the seconds until its bytes are there."""
    start = time.perf_counter()
    connection.request("POST", "/api/decode", json.dumps(given))
    answer = json.loads(connection.getresponse().read())
    sound = base64.b64decode(answer["sound"])
    seconds = time.perf_counter() - start
    assert len(sound) > SECONDS * SAMPLE_RATE, "It is no sound of this length."
    return seconds
