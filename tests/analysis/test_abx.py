"""ABX against plain loops, then properties, then brackets."""

import csv
import math
import random
from collections import defaultdict
from statistics import mean

import numpy as np
import pytest
import torch

from benchmarks.abx import ALL, compare
from speechbrain_sim.analysis.abx import (
    ABX,
    KINDS,
    abx,
    average,
    dtw,
    measure_distances,
    score_blocks,
)
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.study import Results, Study
from speechbrain_sim.analysis.tokens import (
    CONTEXTS,
    Token,
    draw_blocks,
    find_tokens,
    read_tokens,
)

PHONES, PEOPLE = "ABC", ["p", "q", "r", "s"]


def angle(x, y):
    """The angle of two vectors over pi, in plain Python."""
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    cosine = dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return math.acos(max(-1, min(1, cosine))) / math.pi


def align(x, y):
    """Dynamic time warping as in a textbook: costs, then the way back."""
    costs = {}
    for i in range(len(x)):
        for j in range(len(y)):
            before = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
            least = min((costs[b] for b in before if b in costs), default=0)
            costs[i, j] = angle(x[i], y[j]) + least
    path = [(len(x) - 1, len(y) - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        before = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        path.append(min((b for b in before if b in costs), key=costs.get))
    return costs[path[0]] / len(path)


def plain_abx(cut, tokens, across, weights=None):
    """Triplets, then means over contexts, speakers and pairs, by loops."""
    weights = weights or defaultdict(lambda: 1)
    cells = defaultdict(list)
    for i, a in enumerate(tokens):
        for j, b in enumerate(tokens):
            for k, x in enumerate(tokens):
                together = a.speaker == b.speaker and i != k
                same = a.context == b.context == x.context
                phones = a.phone == x.phone != b.phone
                whose = (x.speaker != a.speaker) == across
                if together and same and phones and whose:
                    near, far = align(cut[k], cut[i]), align(cut[k], cut[j])
                    wrong = (near > far) + (near == far) / 2
                    people = a.speaker, x.speaker
                    key = a.phone, b.phone, a.context, *people
                    cells[key].append(wrong)
    inner, middle = defaultdict(list), defaultdict(list)
    for (a, b, _, speaker, other), errors in cells.items():
        inner[a, b, speaker] += [mean(errors)] * weights[other]
    for (a, b, speaker), errors in inner.items():
        middle[a, b] += [mean(errors)] * weights[speaker] if errors else []
    return mean(mean(errors) for errors in middle.values() if errors)


def corpus(per_speaker=9, frames=4, channels=3, seed=0):
    """Random features, and tokens of three phones in two contexts."""
    rng, tokens = random.Random(seed), []
    for speaker in PEOPLE:
        start = 0
        for _ in range(per_speaker):
            stop = start + rng.randint(1, frames)
            names = rng.choice(PHONES), rng.choice("xy"), speaker, speaker
            tokens.append(Token(*names, start, stop))
            start = stop
    generator = torch.Generator().manual_seed(seed)
    size = per_speaker * frames, channels
    features = {n: torch.randn(size, generator=generator) for n in PEOPLE}
    return features, tokens


@pytest.fixture(scope="module")
def drawn():
    """A corpus, and the frames of each token as lists."""
    features, tokens = corpus()
    cut = [features[t.utterance][t.start : t.stop].tolist() for t in tokens]
    return features, tokens, cut


def test_alignments_equal_plain_loops(drawn):
    _, _, cut = drawn
    pairs = torch.combinations(torch.arange(len(cut)), with_replacement=True)
    length = torch.tensor([len(x) for x in cut])
    frames = torch.tensor([frame for token in cut for frame in token])
    ours = measure_distances(frames, length.cumsum(0) - length, length, pairs)
    for (i, j), distance in zip(pairs.tolist(), ours.tolist(), strict=True):
        assert distance == pytest.approx(align(cut[i], cut[j]), abs=5e-4), (
            i,
            j,
        )


def test_ties_go_on_by_both():
    """Two shortest paths: the one of three steps, not of four."""
    distances = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1]]])
    three = torch.tensor([3])
    assert dtw(distances, three, three).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_equal_plain_loops(drawn, kind):
    features, tokens, cut = drawn
    found = abx(features, tokens)[kind]
    expected = plain_abx(cut, tokens, kind == "across")
    assert found["value"] == pytest.approx(expected, abs=1e-6)
    assert 0.2 < expected < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_draws_weigh_speakers(drawn, kind):
    """The interval of two draws has their errors as its ends."""
    features, tokens, cut = drawn
    blocks = draw_blocks(tokens, kind == "across")

    def distance(pairs):
        return np.array([align(cut[i], cut[j]) for i, j in pairs])

    cells, errors = score_blocks(tokens, blocks, distance)
    value, (low, high) = average(cells, errors, resamples=2, seed=3)
    often = np.random.default_rng(3).multinomial(4, [0.25] * 4, 2)
    expected = sorted(
        plain_abx(
            cut, tokens, kind == "across", dict(zip(PEOPLE, n, strict=False))
        )
        for n in often.tolist()
    )
    gap = 0.025 * (expected[1] - expected[0])
    ends = expected[0] + gap, expected[1] - gap
    assert (low, high) == pytest.approx(ends) and gap > 0
    assert value == pytest.approx(plain_abx(cut, tokens, kind == "across"))


def test_limits_draw_by_name_alone():
    _, tokens = corpus(30)
    for across in (False, True):
        blocks = draw_blocks(tokens, across, group=2, speakers=1, seed=7)
        every = draw_blocks(tokens, across)
        again = draw_blocks(tokens, across, group=2, speakers=1, seed=7)
        assert str(again) == str(blocks)
        other = draw_blocks(tokens, across, group=2, speakers=1, seed=8)
        assert str(other) != str(blocks)
        assert len(every) == len(blocks) * (len(PEOPLE) - 1) ** across
        for block in blocks:
            assert len(block.x) == len(block.a) == 2
            assert len(block.b) == 2 * (len(PHONES) - 1)
            x, a, b = ([tokens[i] for i in part] for part in block)
            (phone,) = {token.phone for token in x + a}
            assert phone not in {token.phone for token in b}
            assert len({token.context for token in x + a + b}) == 1
            (speaker,) = {token.speaker for token in a + b}
            (other,) = {token.speaker for token in x}
            assert (other != speaker) == across


@pytest.fixture(scope="module")
def long():
    """Many tokens of two frames each."""
    _, tokens = corpus(40)
    place = dict.fromkeys(PEOPLE, 0)
    for i, token in enumerate(tokens):
        start = place[token.speaker]
        tokens[i] = token._replace(start=start, stop=start + 2)
        place[token.speaker] += 2
    return tokens


def code_of(tokens, code):
    """Features in which each frame of a token is code(token)."""
    features = {n: torch.zeros(80, 8) for n in PEOPLE}
    for token in tokens:
        rows = features[token.utterance]
        rows[token.start : token.stop] = code(token)
    return features


def test_brackets(long):
    generator = torch.Generator().manual_seed(1)

    def noise(_):
        return torch.randn(2, 8, generator=generator)

    def phone(token):
        return torch.eye(8)[PHONES.index(token.phone)]

    def speaker(token):
        return torch.eye(8)[PEOPLE.index(token.speaker)]

    def noisy(token):
        return phone(token) + 0.7 * noise(token)

    codes = {f.__name__: f for f in (phone, noisy, speaker, noise)}
    found = {n: abx(code_of(long, f), long) for n, f in codes.items()}
    for kind in KINDS:
        value = {n: x[kind]["value"] for n, x in found.items()}
        assert value["phone"] == 0 and value["speaker"] == 0.5  # all ties
        assert 0.1 < value["noisy"] < 0.4
        assert value["noise"] == pytest.approx(0.5, abs=0.06)
        low, high = found["noisy"][kind]["interval"]
        assert 0 < low < value["noisy"] < high < 0.5
        assert found["noise"][kind]["speakers"] == 4


def test_the_scale_of_each_frame_does_not_matter(drawn):
    features, tokens, _ = drawn
    generator = torch.Generator().manual_seed(2)
    scaled = {
        name: x * torch.rand(len(x), 1, generator=generator).add(0.1) * 100
        for name, x in features.items()
    }
    for kind in KINDS:
        ours, theirs = abx(features, tokens)[kind], abx(scaled, tokens)[kind]
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-6)


def test_silent_frames_are_alike():
    tokens = [Token(p, "", n, n, 0, 1) for n in "pqr" for p in "A"]
    tokens += [Token("B", "", n, n, 1, 2) for n in "pqr"]
    features = {n: torch.tensor([[0.0, 0.0], [1.0, -1.0]]) for n in "pqr"}
    assert abx(features, tokens)["across"]["value"] == 0


def test_the_section_has_what_was_measured(drawn, tmp_path):
    features, tokens, _ = drawn
    two = [token for token in tokens if token.speaker in "pq"]
    layers = {"means": abx(features, two), "samples": abx(features, two)}
    results = Results(SIM={"a": layers}, mel={"b": {"means": layers["means"]}})
    table, gap = ABX().section(results, Study(tmp_path)).items
    value = layers["means"]["within"]["value"]
    assert table.rows[0][1].startswith(f"{100 * value:.1f} [")
    assert table.rows[0][2] == table.rows[1][2] == "not measured"
    assert table.rows[1][3:] == ["", ""] and "same context" in table.caption
    assert gap.reason.startswith("2 speakers") and gap.system is None
    reason = {"ABX": {"of phones": {"gap": "No phones."}}}
    (gap,) = ABX().section(Results(reason), Study(tmp_path)).items
    assert (gap.title, gap.reason) == ("ABX of phones", "No phones.")
    assert not ABX().section(Results(), Study(tmp_path)).items


def test_few_speakers_are_a_gap(drawn):
    features, tokens, _ = drawn
    two = [token for token in tokens if token.speaker in "pq"]
    found = abx(features, two)
    assert "value" in found["within"]
    assert found["across"]["gap"].startswith("2 speakers are too few")
    assert abx(features, two[:1])["within"]["gap"].startswith("0 speakers")


def test_features_that_do_not_fit_are_refused(drawn):
    features, tokens, _ = drawn
    short = {**features, "p": features["p"][:3]}
    with pytest.raises(ValueError, match="p has 3 frames, and a phone up to"):
        abx(short, tokens)
    broken = {**features, "p": features["p"] * math.nan}
    with pytest.raises(ValueError, match="not finite"):
        abx(broken, tokens)


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_tokens_of_a_manifest(tmp_path):
    rows = [
        {"ID": f"{who}-{i}", "wav": "x.wav", "spk_id": who, "phones": said}
        for who in "pqr"
        for i, said in enumerate(["0 0 1 2 2 3 0", "1 2 3 1 0", ""])
    ]
    write(tmp_path / "test.csv", rows)
    tokens = read_tokens(tmp_path / "test.csv")
    said = {(t.phone, t.context, t.start, t.stop) for t in tokens}
    assert said == {("2", "1 3", 2, 6), ("2", "1 3", 0, 3), ("3", "2 1", 1, 4)}
    assert {t.utterance for t in tokens} == {
        f"{p}-{i}" for p in "pqr" for i in "01"
    }
    some = read_tokens(tmp_path / "test.csv", count=3)
    assert sorted(sum(t.utterance[0] == n for t in some) for n in "pqr") in (
        [0, 1, 3],
        [0, 2, 3],
    )
    (tmp_path / "phones.txt").write_text("0 SIL\n1 AA\n2 SPN\n3 B\n")
    named = read_tokens(tmp_path / "test.csv", context="any", count=1)
    assert [t.phone for t in named] == ["AA", "B"]
    with pytest.raises(Unmeasurable, match="test.csv has no column 'words'"):
        read_tokens(tmp_path / "test.csv", "words")
    (tmp_path / "phones.txt").write_text("1 SIL\n2 SPN\n3 sp\n")
    with pytest.raises(Unmeasurable, match="test.csv has no phones to compare"):
        read_tokens(tmp_path / "test.csv")
    nobody = [{k: v for k, v in r.items() if k != "spk_id"} for r in rows]
    write(tmp_path / "valid.csv", nobody)
    with pytest.raises(Unmeasurable, match="no column 'speaker'"):
        read_tokens(tmp_path / "valid.csv")


def test_spans_of_tokens():
    labels = "a a b c c sil c b a".split()
    spans = [(t.phone, t.start, t.stop) for t in find_tokens(labels, "", "")]
    assert spans == [("b", 0, 5), ("b", 6, 9)]
    alone = find_tokens(labels, "", "", "any")
    assert [labels[t.start] for t in alone] == [t.phone for t in alone]
    assert sum(t.stop - t.start for t in alone) == len(labels) - 1


@pytest.mark.parametrize("context", CONTEXTS)
def test_errors_equal_those_of_fastabx(drawn, context):
    """Where Python is 3.12 or later: the extra `abx`."""
    pytest.importorskip("fastabx")
    features, tokens, _ = drawn
    around = {"x": "B C", "y": "C B"} if context == "within" else {"x": ""}
    tokens = [
        token._replace(context=around[token.context])
        for token in tokens
        if token.context in around
    ]
    rows = compare(features, tokens, context, (ALL, ALL))
    assert [name for name, *_ in rows] == [*KINDS]
    for _, ours, theirs, cells in rows:
        assert float(ours) == pytest.approx(float(theirs), abs=0.01)
        assert int(cells) > 0
