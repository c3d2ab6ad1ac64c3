"""Training curves of one module per layer, and of one for all."""

from speechbrain_sim.analysis.training import (
    curves,
    plot_training,
    read_train_log,
)

GREEDY = "train module1_nce: 5.00e+00, train module1_kl: 2.00, "
GREEDY += "train module1_kl_max: 9.00, train module1_active_units: 4.00, "
GREEDY += "train context_nce: 4.00, train context_active_units: 3.00"
WHOLE = "train encoder_loss: 7.00, train encoder_nce: 5.00"
UNITS = ", train encoder_module1_active_units: 6.00"
KL = ", train encoder_module1_kl: 2.00, train encoder_module1_kl_median: 1.00"
SUPERVISED = "train encoder_loss: 7.00" + UNITS
LOGS = {
    "SIM": GREEDY,
    "CPC": WHOLE + UNITS,
    "end to end": WHOLE + UNITS + KL,
    "supervised": SUPERVISED,
}


def write_logs(folder):
    paths = {}
    for name, stats in LOGS.items():
        paths[name] = folder / f"{name}.txt"
        lines = [f"epoch: {e} - {stats} - valid x: 1.00\n" for e in (1, 2)]
        paths[name].write_text("".join(lines))
    return paths


def test_one_curve_of_each_module_or_layer(tmp_path):
    logs = {n: read_train_log(path) for n, path in write_logs(tmp_path).items()}
    found = {n: [curves(x, t) for t in ("nce", "kl")] for n, x in logs.items()}
    assert found == {
        "SIM": [
            {"module1": [5.0, 5.0], "context": [4.0, 4.0]},
            {"module1": [2.0, 2.0]},
        ],
        "CPC": [{"encoder": [5.0, 5.0]}, {}],
        "end to end": [{"encoder": [5.0, 5.0]}, {"module1": [2.0, 2.0]}],
        "supervised": [{}, {}],
    }
    for numbers in logs.values():
        assert "module1" in curves(numbers, "active_units")


def test_only_the_kl_lacks_a_posterior(tmp_path):
    plot_training(write_logs(tmp_path), tmp_path / "training")
    svg = (tmp_path / "training.svg").read_text()
    assert svg.count("no posterior") == 2  # CPC and supervised


def test_modules_that_train_one_after_another_have_gaps(tmp_path):
    lines = ["train module1_nce: 5.00", "train module2_nce: 4.00"]
    log = tmp_path / "train_log.txt"
    rows = [f"epoch: {i + 1} - {line}\n" for i, line in enumerate(lines)]
    log.write_text("".join(rows))
    found = curves(read_train_log(log), "nce")
    assert str(found) == "{'module1': [5.0, nan], 'module2': [nan, 4.0]}"
    plot_training({"apart": log}, tmp_path / "training")
