"""Times and values of words: what is read, what is refused, frames."""

import pytest
import torch

from speechbrain_sim.data.words import (
    Span,
    read_spans,
    read_values,
    spoken_values,
)

SPANS = "ID,word,start,end\n"


def test_values_of_frames_are_those_of_a_loop():
    spans = [Span("BAD", 0.02, 0.1), Span("IN THE", 0.1, 0.15)]
    spans += [Span("GOOD", 0.2, 0.31)]
    values = {"BAD": -0.8, "GOOD": 0.5, "IN": 0.1, "THE": -0.3}
    for hop, center in ((160, 20.0), (320, 200.0), (80, -20.0)):
        found = spoken_values(spans, values, 40, hop, center)
        for i, value in enumerate(found.tolist()):
            time, expected = (center + hop * i) / 16000, 0.0
            for span in spans:
                if span.start <= time < span.end:
                    expected = {"IN THE": -0.3}.get(span.word) or values[
                        span.word
                    ]
            assert value == pytest.approx(expected)
    assert not spoken_values(spans, {}, 40, 160, 20).any()
    assert spoken_values([], values, 3, 160, 20).equal(torch.zeros(3))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a,hi,0.2,0.1", "spans.csv:2 needs a word, and a start before"),
        ("a,,0,1", "spans.csv:2 needs a word"),
        ("a,hi,zero,1", "spans.csv:2 .* 'zero'"),
        ("a,hi,nan,1", "spans.csv:2 needs"),
        ("a,hi,0,1\nb,hi,0,1\na,ho,0.5,2", "spans.csv:4: 'HI' and 'HO' of a"),
    ],
)
def test_times_that_are_none_are_named(tmp_path, lines, message):
    path = tmp_path / "spans.csv"
    path.write_text(SPANS + lines + "\n")
    with pytest.raises(ValueError, match=message):
        read_spans(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("good,much", "v.csv:2 needs a word and its polarity .* 'much'"),
        ("good,7", "v.csv:2 needs a word and its polarity from -1 to 1"),
        ("good,nan", "v.csv:2 needs"),
        ("--,1", "v.csv:2 needs"),
        ("good,1\nGood!,0.5", "v.csv:3: GOOD has two values, 1 and 0.5"),
        ("", "lists no word"),
    ],
)
def test_values_that_are_none_are_named(tmp_path, lines, message):
    path = tmp_path / "v.csv"
    path.write_text(f"word,polarity\n{lines}\n")
    with pytest.raises(ValueError, match=message):
        read_values(path)


def test_any_column_has_values(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("word;arousal\ngood;0.5\ngood;0.5\n")
    assert read_values(path, "arousal") == {"GOOD": 0.5}
    with pytest.raises(ValueError, match="no polarity"):
        read_values(path)
