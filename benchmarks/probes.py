"""Solved probes against scikit-learn's, on the same features.

    python -m benchmarks.probes results/demo/log-mel_1/probe phones

Of a finished run of recipes/probe.py: the chosen strength and units, every
layer, trained on training and validation part. Both sides run on one thread.
"""

import sys
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from speechbrain_sim.analysis.probes import read_examples
from speechbrain_sim.files import read_json
from speechbrain_sim.logistic import solve_logistic
from speechbrain_sim.probes import units_of
from speechbrain_sim.report.tables import markdown_table
from speechbrain_sim.rows import moments


def by_scikit_learn(x, y, test, strength):
    """Returns the predicted classes of a test part."""
    # in units of the mean square, as `solve_logistic`
    scale = np.sqrt(np.mean(np.square(x)))
    model = LogisticRegression(
        C=1 / (strength * len(y)), tol=1e-5, max_iter=5000
    )
    return model.fit(x / scale, y).predict(test / scale)


def compare(folder, label):
    """Yields a row of the table for each layer."""
    found = read_json(f"{folder}/probe_{label}.json")
    parts = [
        read_examples(folder, label, p) for p in ("train", "valid", "test")
    ]
    for layer, score in found["layers"].items():
        known, valid, test = (part[layer] for part in parts)
        known = known.join(valid)
        units = moments(known.x.split(65536))
        units = units_of(*units, score["standardize"])
        x, held_out = (part.x.scaled(*units) for part in (known, test))
        y = torch.from_numpy(known.y)
        accuracy, seconds = [], []
        for solve in (
            lambda: solve_logistic(x, y, found["classes"], score["strength"])
            .predict(held_out)[0]
            .numpy(),
            lambda: by_scikit_learn(
                x[:].numpy(), known.y, held_out[:].numpy(), score["strength"]
            ),
        ):
            begun = time.process_time()
            accuracy.append(100 * np.mean(solve() == test.y))
            seconds.append(time.process_time() - begun)
        yield {
            "label": label,
            "layer": layer,
            "examples": str(len(y)),
            "λ": f"{score['strength']:g}",
            "ours, %": f"{accuracy[0]:.2f}",
            "scikit-learn, %": f"{accuracy[1]:.2f}",
            "ours, CPU s": f"{seconds[0]:.2f}",
            "scikit-learn, CPU s": f"{seconds[1]:.2f}",
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = list(compare(*sys.argv[1:]))
    print(markdown_table([*rows[0]], [[*row.values()] for row in rows]))
