"""Phone labels: one rule, three sources."""

import numpy as np
import pytest
import soundfile

from speechbrain_sim.data.labels import num_labels
from speechbrain_sim.data.phones import (
    IDS,
    PHONES,
    label_windows,
    phone_id,
    read_phones,
    write_names,
)
from tests.conftest import ROOT

EXCERPT = ROOT.parent / "shared/data/LibriSpeechExcerpt"
#: what is said in 0.4 s
SAID = [
    (0.0, 0.1, ""),
    (0.1, 0.18, "DH"),
    (0.18, 0.25, "AH0"),
    (0.25, 0.33, "spn"),
    (0.33, 0.4, "sil"),
]
SAMPLES = 6400
GRID = """\
File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = {end}
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = {end}
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = {end}
            text = "the"
    item [2]:
        class = "IntervalTier"
        name = "{tier}"
        xmin = 0
        xmax = {end}
        intervals: size = {count}
"""


def write_grid(path, intervals=SAID, tier="phones"):
    text = GRID.format(end=intervals[-1][1], tier=tier, count=len(intervals))
    for number, (start, end, phone) in enumerate(intervals, start=1):
        text += (
            f"        intervals [{number}]:\n            xmin = {start}\n"
            f'            xmax = {end}\n            text = "{phone}"\n'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def slow_labels(intervals, num_samples):
    """The phone at the centre of each 25 ms window; a loop."""
    labels, start = [], 0
    while start + 400 <= num_samples:
        centre, label = (start + 200) / 16000, 0
        for begin, end, phone in intervals:
            if begin <= centre < end:
                label = phone_id(phone)
        labels.append(label)
        start += 160
    return labels


def test_the_map_has_41_classes_as_the_published_list():
    assert len(PHONES) == len(set(PHONES)) == 41
    assert [phone_id(name) for name in PHONES] == list(range(41))
    assert phone_id("ZH2") == phone_id("zh") == IDS["ZH"] == 40
    assert phone_id("AX") is None and phone_id("AH3") is None


@pytest.mark.parametrize("samples", [0, 399, 400, 559, 560, 6399, 6400, 7000])
def test_labels_are_those_at_the_centres(samples):
    said = [i for i in SAID if i[0] < samples / 16000 - 0.05]
    if said:
        said[-1] = (said[-1][0], samples / 16000, said[-1][2])
    labels = label_windows(said, samples)
    assert labels.tolist() == slow_labels(said, samples)
    assert len(labels) == num_labels(samples) and labels.dtype == np.int64


def test_random_intervals_with_gaps():
    rng = np.random.default_rng(0)
    for _ in range(50):
        times = np.unique(rng.uniform(0, 2, 31).round(3))[:30]
        said = [
            (*map(float, times[i : i + 2]), PHONES[rng.integers(2, 41)])
            for i in range(0, 28, 2)
        ]
        assert label_windows(said, 32000).tolist() == slow_labels(said, 32000)


@pytest.mark.parametrize(
    "intervals",
    [
        [(0.1, 0.1, "AA")],
        [(0.2, 0.1, "AA")],
        [(-0.1, 0.1, "AA")],
        [(0.0, 0.2, "AA"), (0.1, 0.3, "B")],
        [(0.3, 0.46, "AA")],
    ],
)
def test_impossible_intervals(intervals):
    with pytest.raises(ValueError, match="'(AA|B)' from"):
        label_windows(intervals, SAMPLES)


def test_textgrids_are_found_at_any_depth(tmp_path):
    write_grid(tmp_path / "train/19/7/19-7-0000.TextGrid")
    write_grid(tmp_path / "19-7-0001.TextGrid", SAID[:-1])
    write_grid(tmp_path / "19-7-0002.TextGrid", tier="syllables")
    (tmp_path / "19-7-0003.TextGrid").write_text("no grid")
    write_grid(tmp_path / "19-7-0004.TextGrid", [(0, 0.4, "Q")])
    write_grid(tmp_path / "elsewhere.TextGrid")
    samples = {f"19-7-000{i}": SAMPLES for i in range(6)}
    labels, problems = read_phones(tmp_path, samples)
    expected = " ".join(map(str, slow_labels(SAID, SAMPLES)))
    assert labels == {"19-7-0000": expected}
    assert set(expected.split()) == {"0", "1", str(IDS["DH"]), str(IDS["AH"])}
    told = {str(p.path)[-18:] + p.problem for p in problems}
    for words in (
        "0001.TextGrid",
        "0002.TextGrid",
        "0003.TextGrid",
        "'Q' from 0",
    ):
        assert sum(words in text for text in told) == 1
    assert all(str(p.path).endswith(".TextGrid") for p in problems)
    assert len(problems) == 4
    assert read_phones(tmp_path, {"another": 400}) == ({}, [])


def test_two_textgrids_of_an_utterance_are_a_problem(tmp_path):
    write_grid(tmp_path / "a.TextGrid")
    write_grid(tmp_path / "old/a.TextGrid", [(0, 0.4, "AA")])
    for name in ("b.TextGrid", "old/b.TextGrid"):  # nobody needs them
        write_grid(tmp_path / name)
    _, (problem,) = read_phones(tmp_path, {"a": SAMPLES})
    assert problem.path == tmp_path / "old/a.TextGrid"
    assert f"{tmp_path / 'a.TextGrid'} is of the same" in problem.problem


def test_a_csv_says_the_same(tmp_path):
    lines = [f"a,{start},{end},{phone}" for start, end, phone in SAID]
    lines += ["b,0,0.1,AA", "b,0.05,0.2,B", "c,0,x,AA", "z,0,9,AA"]
    lines += ["d,0,0.1", "d"]
    path = tmp_path / "phones.csv"
    path.write_text("\n".join(["ID,start,end,phone", *lines]))
    samples = dict.fromkeys("abcd", SAMPLES)
    labels, problems = read_phones(path, samples)
    assert labels["a"].split() == [str(i) for i in slow_labels(SAID, SAMPLES)]
    assert set(labels) == {"a"}
    places = [f"{path}:{line}" for line in (9, 11, 12, 7)]
    assert [p.path for p in problems] == places
    assert "b: 'B' from 0.05" in problems[3].problem
    path.write_text("ID,start,end\n")
    with pytest.raises(ValueError, match="no phone"):
        read_phones(path, samples)


def test_a_mark_at_the_beginning_is_no_letter(tmp_path):
    for name, text in (
        ("phones.csv", "ID,start,end,phone\na,0,0.02,AA\n"),
        ("phones.txt", "a 2\n"),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8-sig")
        assert read_phones(path, {"a": 400}) == ({"a": "2"}, [])
        path.write_bytes(b"a\xff")
        with pytest.raises(ValueError, match=f"{path} .* 0xff at 1"):
            read_phones(path, {"a": 400})


def test_names_are_written_for_what_has_names(tmp_path):
    path = tmp_path / "phones.txt"
    for source in (tmp_path, "phones.csv", "phones.CSV"):
        write_names(tmp_path, source)
        lines = path.read_text().splitlines()
        assert lines[0] == "0 SIL" and lines[40] == "40 ZH"
        for none in ("phones.txt", "phones.lst", None):
            write_names(tmp_path, none)
            assert not path.exists()


@pytest.mark.data
def test_the_rule_holds_on_real_lines():
    """Of the one utterance whose audio is there; and all ids are in range."""
    if not EXCERPT.is_dir():
        pytest.skip("../shared/data/LibriSpeechExcerpt is absent")
    path = EXCERPT / "LibriSpeech100_labels_split/converted_aligned_phones.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    assert {int(p) for _, *phones in lines for p in phones} <= set(range(41))
    # the shortest audio that has so many labels
    samples = {name: 160 * (len(p) - 1) + 400 for name, *p in lines}
    (flac,) = EXCERPT.glob("*/train-clean-100/*/*/4051-11218-0044.flac")
    samples["4051-11218-0044"] = soundfile.info(flac).frames
    labels, problems = read_phones(path, samples)
    assert problems == [] and len(labels) == 5
