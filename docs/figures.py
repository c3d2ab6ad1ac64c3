"""The README's picture of the architecture: `python -m docs.figures`."""

from pathlib import Path

from speechbrain_sim.report.style import COLOURS, drawing


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


if __name__ == "__main__":
    draw_modules(Path(__file__).with_name("modules"))
