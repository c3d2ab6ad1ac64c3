"""Tables of the pages on halves: means over the seeds of a study."""

import json

import pytest

from docs.half_tables import main


def save_run(folder, error, left):
    """Writes what a run of halves leaves, as far as it is read."""
    folder.mkdir()
    half = {"kl": 1.0, "kl_per_second": 100 * error, "PER": {"value": error}}
    scores = {"halves": {"text": half, "text_baseline": {"PER": half["PER"]}}}
    (folder / "vib.json").write_text(json.dumps(scores))
    gap = {"h": {"accuracy": 0.2}, "z_text": {"leakage": {"gap": "chance"}}}
    share = {"accuracy": 0.1, "leakage": {"value": left}}
    read = {"speaker": {"h": {"accuracy": 0.8}, "z_text": share}, "sex": gap}
    found = {"result": {"probes": {"linear": read}}}
    (folder / "halves.json").write_text(json.dumps(found))


def test_means_over_seeds(tmp_path, capsys):
    for seed, error in enumerate((0.4, 0.5, 0.6), 1):
        save_run(tmp_path / f"SIM context_{seed}", error, error / 2)
    save_run(tmp_path / "alone_1", 0.9, 0.9)
    main(tmp_path)
    rows = [row.split(" | ") for row in capsys.readouterr().out.split("\n")]
    cells = {tuple(row[:2]): row[2:] for row in rows if len(row) > 3}
    half = 4.3027 * 10 / 3**0.5  # t of two degrees of freedom, deviation 10
    interval = f"[{50 - half:.1f}, {50 + half:.1f}]"
    error, nats = cells["| SIM context", "text"][1:]
    assert error == f"50.0 {interval}" and nats.startswith("50 [25, 75]")
    left, read = cells["| SIM context", "speaker"]
    assert left == "25 [13, 37]" and read == "80.0 |"
    assert cells["| SIM context", "sex"][0] == ""  # h itself is at chance
    assert not any("alone" in name for name, _ in cells)


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no runs of several seeds"):
        main(tmp_path)
