"""What few dimensions cost: accuracy of the probes against delta."""

from speechbrain_sim.analysis.delta import SHARE, best_delta, delta_at_share
from speechbrain_sim.analysis.study import COMPARED, Tool
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap


def plot_trade_off(layers, label, path):
    """Plots accuracy over delta: layer -> system -> (score, delta)."""
    with style.layer_drawing(path, list(layers), 3, 3.4, sharex=True) as panels:
        for layer, panel in panels.items():
            for i, (name, (score, delta)) in enumerate(layers[layer].items()):
                x, x_ends = style.error_bars([delta], "value", 100)
                y, y_ends = style.error_bars([score], "accuracy", 100)
                look = {"marker": "osD^v<>pXP*h"[i % 12], "linewidth": 0.8}
                look |= style.look(name, i)
                panel.errorbar(x, y, y_ends, x_ends, **look)
            panel.set_xlabel(f"δ at N/D = {SHARE} (%)")
        next(iter(panels.values())).set_ylabel(f"{label} accuracy (%)")


class TradeOff(Tool):
    """Section of accuracy against delta; needs no numbers of its own."""

    key = "trade-off"
    title = "Accuracy against few dimensions"
    sentence = "Up and to the left is better."

    def items(self, found, study):
        """Returns the figure, or the reason why there is none."""
        kind, found = best_delta(study)
        scores = study.probed.get(study.label, {})
        points = {layer: {} for layer in found.layers()}
        for _, system, layer, numbers in found.rows():
            probed = scores.get(system, {"layers": {}})["layers"]
            pair = probed.get(layer), delta_at_share(numbers)
            points[layer] |= {system: pair} if layer in probed else {}
        if not any(points.values()):
            return [Gap("No trade-off", "It needs probes, and delta.")]
        plot_trade_off(points, study.label, study.folder / "figures/trade_off")
        return [
            Figure(
                "Accuracy against δ",
                f"Probes for {study.label} in each layer, and δ at N/D = "
                f"{SHARE} by mean absolute error of {COMPARED[kind]}. "
                "95 % intervals.",
                "figures/trade_off",
                "Accuracy over δ, a panel per layer, a point per system.",
            )
        ]
