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


def by_us(x, y, test, strength):
    """Returns the predicted classes of a test part, from Rows."""
    solved = solve_logistic(x, torch.from_numpy(y), int(y.max()) + 1, strength)
    return solved.predict(test)[0].numpy()


def by_scikit_learn(x, y, test, strength):
    """Returns the predicted classes of a test part, held in memory."""
    x, test = x[:].numpy(), test[:].numpy()
    # in units of the mean square, as `solve_logistic`
    scale = np.sqrt(np.mean(np.square(x)))
    c = 1 / (strength * len(y))
    model = LogisticRegression(C=c, tol=1e-5, max_iter=5000)
    return model.fit(x / scale, y).predict(test / scale)


def compare(folder, label):
    """Yields a row of the table for each layer."""
    found = read_json(f"{folder}/probe_{label}.json")
    settings = found["settings"]
    if not settings["bias"] or settings.get("hidden", 1):
        raise ValueError(
            f"{folder} has no solved linear probes with a bias: probe again, "
            f"with --protocol converged --bias True --hidden 0."
        )
    names = ("train", "valid", "test")
    parts = [read_examples(folder, label, name) for name in names]
    for layer, score in found["layers"].items():
        known, valid, test = (part[layer] for part in parts)
        units = moments(known.x.split(65536))
        units = units_of(*units, score["standardize"])
        known = known.join(valid)
        x, held_out = (part.x.scaled(*units) for part in (known, test))
        row = {"label": label, "layer": layer, "examples": str(len(x))}
        row["strength"] = f"{score['strength']:g}"
        for name, solve in {"ours": by_us, "theirs": by_scikit_learn}.items():
            begun = time.process_time()
            predicted = solve(x, known.y, held_out, score["strength"])
            seconds = time.process_time() - begun
            row[f"{name}, %"] = f"{100 * np.mean(predicted == test.y):.2f}"
            row[f"{name}, CPU s"] = f"{seconds:.2f}"
        yield row


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        rows = list(compare(*sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"python -m benchmarks.probes: {error}")
    print(markdown_table([*rows[0]], [[*row.values()] for row in rows]))
