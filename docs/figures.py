"""Pictures and sounds of README and first page: `python -m docs.figures`."""

from pathlib import Path

import soundfile

from speechbrain_sim import SmoothInfoMax
from speechbrain_sim.report.sounds import (
    RANGE,
    common_gain,
    encode_sound,
    log_mel_of,
)
from speechbrain_sim.report.style import COLOURS, drawing, mel_png


def draw_modules(path):
    """Draws what each module is trained on, and where the gradient is cut.

    Arguments
    ---------
    path : str or Path
        Target without suffix.
    """
    boxes = ["module1\n2 conv", "module2\n2 conv", "module3\n1 conv"]
    boxes += ["context\nGRU"]
    shapes = [
        "samples\n10240",
        "511 × 512",
        "129 × 512",
        "64 × 512",
        "64 × 256",
    ]
    step, arrow = 3.0, {"arrowstyle": "->", "color": "black"}
    with drawing(path, size=(9, 2.6)) as (_, grid):
        axes = grid[0, 0]
        axes.set_axis_off()
        axes.set_xlim(-0.3, 4 * step + 1.5)
        axes.set_ylim(-1.9, 1.2)
        for i, shape in enumerate(shapes):
            x = step * i  # an arrow, and the box it leads to
            axes.annotate("", (x + 1.45, 0), (x, 0), arrowprops=arrow)
            axes.text(x + 0.7, 0.15, shape, ha="center", va="bottom", size=8)
            if i in (1, 2, 3):
                centre = {"ha": "center", "va": "center", "size": 14}
                axes.text(x + 0.7, -0.08, "∥", **centre)
        for i, text in enumerate(boxes):
            x, colour = step * i + 2.2, COLOURS[i]
            loss = "InfoNCE" if i == 3 else "InfoNCE\n+ β KL(q ‖ N(0, I))"
            box = {"boxstyle": "round,pad=0.5", "facecolor": "white"}
            centre = {"ha": "center", "va": "center"}
            axes.text(x, 0, text, **centre, bbox={**box, "edgecolor": colour})
            axes.annotate(
                loss,
                (x, -0.45),
                (x, -1.4),
                **centre,
                color=colour,
                size=8.5,
                arrowprops={"arrowstyle": "<->", "color": colour},
            )
        axes.text(
            0,
            1.0,
            "∥  no gradient crosses: each module learns from its own loss",
        )


def walk():
    """Maps names to the first page's sounds, (samples,), of `sim-small`.

    A recording, what its latents decode to, those halfway to the recording of
    another voice, and those of that recording.
    """
    model = SmoothInfoMax.from_pretrained("sim-small")
    one, two = model.examples
    path = model.interpolate_files(one, two, "module3", steps=3).numpy()
    recorded = soundfile.read(one, stop=path.shape[1])[0]
    names = "recorded", "decoded", "halfway", "other"
    return dict(zip(names, [recorded, *path], strict=True))


def write_sounds(folder):
    """Writes the first page's sounds as mp3, and their log-mel as png.

    Arguments
    ---------
    folder : str or Path
        Target.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    sounds = walk()
    gain = common_gain(list(sounds.values()))
    mels = {name: log_mel_of(gain * wav) for name, wav in sounds.items()}
    high = max(mel.max() for mel in mels.values())
    for name, wav in sounds.items():
        sound = encode_sound(gain * wav, "MP3")
        (folder / f"{name}.mp3").write_bytes(sound)
        picture = mel_png(mels[name], high - RANGE, high)
        (folder / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    here = Path(__file__).parent
    draw_modules(here / "modules")
    write_sounds(here / "first-page")
