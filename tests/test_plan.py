"""`speechbrain-sim plan`."""

import pytest

from speechbrain_sim.cli import main


def test_a_plan_is_printed_and_nothing_written(
    tiny_yaml, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    main(["plan", str(tiny_yaml), "--ranks", "4", "--hours", "2"])
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if "|" in line]
    names = [row[1].strip() for row in rows]
    assert names[2:6] == ["module1", "module2", "module3", "context"]
    assert names[-3:] == ["1 x 4", "2 x 2", "4 x 1"]
    # crops of 0.25 s, two a step
    assert f"{2 * 3600 / 0.5:.0f} steps of one process" in printed
    assert not list(tmp_path.iterdir())


def test_options_are_those_of_the_yaml(tiny_yaml, capsys):
    main(["plan", str(tiny_yaml), "--set", "model=cpc", "--ranks", "2"])
    printed = capsys.readouterr().out
    assert "| encoder |" in printed and "| 1 x 2 |" in printed
    assert "2 x 1" not in printed  # one gradient: no stages
    with pytest.raises(SystemExit, match="ranks"):
        main(["plan", str(tiny_yaml), "--ranks", "0"])
