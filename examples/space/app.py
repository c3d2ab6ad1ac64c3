"""The explorer as a Hugging Face Space: a latent space under sliders.

MODEL, an environment variable, names what is explored: `sim-small`, which comes
with the package, a folder, or `user/model`.
"""

import base64
import io
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at its import
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import soundfile
from PIL import Image

from speechbrain_sim import SmoothInfoMax
from speechbrain_sim.explorer.clips import BYTES, SECONDS, Clips
from speechbrain_sim.explorer.codes import list_features
from speechbrain_sim.explorer.edits import SIGMAS
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.explorer.jobs import Queue, Refused

SOURCE = os.environ.get("MODEL", "sim-small")
#: the engine's name of its only model
MODEL = "m0"
ABOUT = f"""# Smooth InfoMax: {Path(SOURCE).name}
Choose or record a sound, at most {SECONDS} seconds; change what a layer makes of
it; and listen. All is decoded again when a slider is released."""


class Space:
    """A model, and one queue for all visitors.

    Arguments
    ---------
    source : str
        See `SmoothInfoMax.from_pretrained`.
    """

    def __init__(self, source):
        model = SmoothInfoMax.from_pretrained(source)
        self.examples = [str(path) for path in model.examples]
        self.engine, self.queue = Engine({source: model}, Clips([])), Queue()
        described = self.engine.models[MODEL].describe()
        layers = {layer["name"]: layer for layer in described["layers"]}
        self.layers = {n: x for n, x in layers.items() if x["decodes"]}
        self.codes = [
            name
            for name, layer in self.layers.items()
            if layer["kind"] in ("sae", "vsc")
        ]
        self.probes = described["probes"]

    def ask(self, function, *paths):
        """Calls a function with the ids of recordings, and a `check`.

        A gr.Error is raised, which the page shows, if one cannot be used.
        """
        if None in paths:
            raise problem("Record, upload or choose a recording first.")

        def work(check):
            clips = []
            for path in map(Path, paths):
                given = path.read_bytes(), path.name, check
                clips.append(self.engine.upload(*given)["id"])
            return function(*clips, check)

        try:
            return self.queue.add(work).future.result()
        except (Refused, ValueError) as error:
            raise problem(error) from error

    def decode(self, first, second, layer, edit):
        """Decodes a recording after one edit; `second` is the other, or None.

        Returns the sound, the change of its log-mel as a picture, and a text.
        """
        paths = [first] if second is None else [first, second]

        def work(clip, *rest):
            *others, check = rest
            other = {"other": others[0]} if others else {}
            edits = [{**edit, **other}]
            given = {"model": MODEL, "clip": clip, "layer": layer}
            return self.engine.decode({**given, "edits": edits}, check)

        answer, text = self.ask(work, *paths), ""
        if answer["delta"] and answer["delta"]["value"] is not None:
            text = "δ({count}) = {value:.2f}, of the {of}".format(
                **answer["delta"]
            )
        sound, picture = map(opened, (answer["sound"], answer["difference"]))
        wav, rate = soundfile.read(sound, dtype="int16")
        return (rate, wav), Image.open(picture), text

    def read(self, first):
        """Returns what the probes read: rows of a table."""

        def work(clip, check):
            return self.engine.show_probes(MODEL, clip, check)

        return [
            [found["label"], span["start"], span["end"], span["class"]]
            + [round(span["probability"], 2)]
            for found in self.ask(work, first)
            for span in found["spans"]
        ]

    def find_features(self, first, codes):
        """Returns a list of the features that are most active."""

        def work(clip, check):
            found = list_features(self.engine, MODEL, codes, clip, check)
            return found["features"]

        found = self.ask(work, first)
        choices = [
            (f"{x['feature']} {x['name'] or ''} (at {x['at']:.2f} s)",)
            + (x["feature"],)
            for x in found
        ]
        return gr.Dropdown(choices, value=choices[0][1] if choices else None)

    # ------------------------------------------------ what the controls call

    def interpolate(self, first, second, layer, amount):
        """Decodes (1 - amount) first + amount second."""
        edit = {"kind": "interpolate", "amount": amount}
        return self.decode(first, second, layer, edit)

    def swap(self, first, second, layer, count):
        """Decodes the first with so many dimensions of the second."""
        edit = {"kind": "swap", "count": whole(count)}
        return self.decode(first, second, layer, edit)

    def set_dimension(self, first, layer, dimension, deviations, of):
        """Decodes the first with one dimension set in all frames."""
        edit = {"kind": "set", "dimension": whole(dimension), "of": of}
        edit["deviations"] = deviations
        return self.decode(first, None, layer, edit)

    def noise(self, first, layer, seed):
        """Decodes a draw from the prior, as long as the first."""
        edit = {"kind": "noise", "seed": whole(seed)}
        return self.decode(first, None, layer, edit)

    def scale_feature(self, first, codes, feature, times):
        """Decodes the first with one feature times as strong."""
        if feature is None:
            raise problem("Find features, and choose one.")
        layer = self.engine.models[MODEL].encoder.origin(codes)
        edit = {"kind": "features", "layer": codes, "how": "scale"}
        edit["features"] = {str(whole(feature)): times}
        return self.decode(first, None, layer, edit)


def problem(sentence):
    """Makes the error that the page shows."""
    return gr.Error(str(sentence), print_exception=False)


def opened(text):
    """Opens bytes that are base64, as a file."""
    return io.BytesIO(base64.b64decode(text))


def whole(value):
    """Returns the whole number that a control may hold as a float."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def make_blocks(space):
    """Makes the page of a Space."""
    layers, probed = list(space.layers), [p["label"] for p in space.probes]
    sounds = {"sources": ["upload", "microphone"], "type": "filepath"}
    with gr.Blocks(
        title="Smooth InfoMax",
        analytics_enabled=False,
        delete_cache=(3600, 3600),  # recordings of visitors, in seconds
    ) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            first = gr.Audio(label="Recording", **sounds)
            second = gr.Audio(label="Another, to walk to", **sounds)
        if paths := space.examples:
            pairs = zip(paths, paths[1:] + paths[:1], strict=True)
            gr.Examples([list(pair) for pair in pairs], [first, second])
        layer = gr.Dropdown(layers, value=layers[-1], label="Layer")
        shown = [
            gr.Audio(label="Decoded", interactive=False, render=False),
            gr.Image(label="What changed in its log-mel", render=False),
            gr.Markdown(render=False),
        ]
        both, one = [first, second, layer], [first, layer]
        most = space.layers[layers[-1]]["channels"]
        with gr.Tab("Interpolate"):
            amount = gr.Slider(0, 1, 0.5, label="From the one to the other")
            on_change(space.interpolate, [*both, amount], shown)
        with gr.Tab("One dimension"):
            number = gr.Slider(0, most - 1, 0, step=1, label="Dimension")
            ends = -SIGMAS, SIGMAS
            sigmas = gr.Slider(*ends, 0, step=0.1, label="Deviations (σ)")
            of = gr.Radio(["clip", "prior"], value="clip", label="σ of the")
            inputs = [*one, number, sigmas, of]
            on_change(space.set_dimension, inputs, shown)
        with gr.Tab("Swap"):
            count = gr.Slider(0, most, most // 8, step=1, label="Dimensions")
            on_change(space.swap, [*both, count], shown)
        with gr.Tab("Noise"):
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            on_change(space.noise, [*one, seed], shown)
        if space.codes:
            with gr.Tab("Features"):
                features(space, first, shown)
        if probed:
            with gr.Tab(f"Read: {', '.join(probed)}"):
                heads = ["probe", "from (s)", "to (s)", "class", "probability"]
                table = gr.Dataframe(headers=heads, interactive=False)
                on_change(space.read, [first], table, "Read")
        for output in shown:
            output.render()

        def resize(name):
            channels = space.layers[name]["channels"]
            limits = gr.Slider(maximum=channels - 1, value=0)
            return limits, gr.Slider(maximum=channels, value=channels // 8)

        layer.change(resize, layer, [number, count], api_name=False)
    return page


def features(space, first, shown):
    """Adds the controls of sparse features."""
    codes = gr.Dropdown(space.codes, value=space.codes[0], label="Codes")
    feature = gr.Dropdown([], label="Most active feature")
    find = gr.Button("Find features")
    find.click(space.find_features, [first, codes], feature)
    times = gr.Slider(0, 3, 0, step=0.1, label="Times as strong")
    on_change(space.scale_feature, [first, codes, feature, times], shown)


def on_change(function, inputs, outputs, label="Decode"):
    """Adds a button for a function; sliders call it when they are released."""
    button = gr.Button(label, variant="primary")
    sliders = [x.release for x in inputs if isinstance(x, gr.Slider)]
    gr.on(
        [button.click, *sliders],
        function,
        inputs,
        outputs,
        trigger_mode="always_last",
    )


#: no font of another host
LOOK = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono="monospace"
)

if __name__ == "__main__":
    make_blocks(Space(SOURCE)).launch(max_file_size=BYTES, theme=LOOK)
