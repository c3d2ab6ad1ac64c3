"""docs/own-corpus.md: its functions and its yamls run as printed."""

import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_sim.data.targets import read_targets
from tests.conftest import HPARAMS, ROOT, TINY, finish, start_process

TEXT = (ROOT / "docs/own-corpus.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def prepare():
    names = {}
    exec(blocks("python")[0], names)
    return names


def noise(path, samples, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(number).standard_normal(samples)
    soundfile.write(path, wave, 16000)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make_timit(folder):
    for side in ("TRAIN", "TEST"):
        for speaker in ("FCJF0", "MDAC0"):
            for number, name in enumerate(["SA1", "SI648", "SX37"]):
                samples = 15000 if name == "SX37" else 21000 + 160 * number
                path = folder / side / "DR1" / speaker / f"{name}.WAV"
                noise(path, samples, number)
                lines = [(0, 3000, "h#"), (3000, 9000, "sh")]
                lines += [(9000, samples, "iy")]
                path.with_suffix(".PHN").write_text(
                    "".join(f"{a} {b} {name}\n" for a, b, name in lines)
                )


def test_a_layout_like_common_voice(prepare, tmp_path):
    for name, count in {"train": 4, "dev": 2, "test": 2}.items():
        lines = ["client_id\tpath\tsentence"]
        for i in range(count):
            noise(tmp_path / "clips" / f"{name}{i}.mp3", 24000, i)
            lines.append(f'speaker{i % 2}\t{name}{i}.mp3\t"words')
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    prepare["prepare_like_common_voice"](
        tmp_path, tmp_path / "save", min_samples=1600
    )
    rows = rows_of(tmp_path / "save/train.csv")
    assert [row["ID"] for row in rows] == [f"train{i}" for i in range(4)]
    assert rows[1]["speaker"] == "speaker1"
    manifests = {"train": tmp_path / "save/train.csv"}
    labels, ids = read_targets(manifests, "words")
    assert labels.text(ids["train"]["train1"]) == "WORDS"


def test_a_layout_like_timit_trains_and_is_probed(tmp_path):
    make_timit(tmp_path / "TIMIT")
    (tmp_path / "mine.py").write_text(blocks("python")[0])
    hparams = tmp_path / "hparams"
    shutil.copytree(HPARAMS, hparams)
    (hparams / "Mine").mkdir()
    for name, yaml in zip(
        ("corpus", "pretrain", "probe"), blocks("yaml"), strict=True
    ):
        (hparams / f"Mine/{name}.yaml").write_text(yaml)
    tiny = [text for k, v in TINY.items() for text in (f"--{k}", str(v))]
    for recipe, options in {
        "pretrain": [
            *tiny,
            "--batch_size=2",
            "--num_workers=0",
            "--number_of_epochs=1",
        ],
        "probe": ["--encoder", tmp_path / "pretrain", "--label=phones"],
    }.items():
        command = ["env", f"PYTHONPATH={ROOT}:{tmp_path}"]
        command += [sys.executable, ROOT / f"recipes/{recipe}.py"]
        command += [hparams / f"Mine/{recipe}.yaml", *options]
        command += ["--data_folder", tmp_path / "TIMIT"]
        command += ["--output_folder", tmp_path / recipe]
        finish(start_process(command))
    rows = rows_of(tmp_path / "pretrain/save/train.csv")
    lengths = [row["num_samples"] for row in rows]
    assert sorted(lengths) == 2 * ["15000"] + 2 * ["21160"]  # below a crop
    result = json.loads((tmp_path / "probe/probe_phones.json").read_text())
    assert result["class_names"] == ["0", "1", "2"]
    assert rows_of(tmp_path / "probe/save/test.csv")[0]["phones"][:3] == "0 0"
