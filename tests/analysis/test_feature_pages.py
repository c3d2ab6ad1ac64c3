"""What the pages of features refuse."""

import pytest
import torch

from speechbrain_sim.analysis.feature_pages import file_page
from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.cli import main
from speechbrain_sim.data.audio import BadAudio
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.inference import SmoothInfoMax

FRAMES, MEANS = "logmel.sae", "logmel.mean"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    coders = {n: SparseAutoencoder(80, 90, 4) for n in (FRAMES, MEANS)}
    entries = {MEANS: {"pooling": "mean"}}
    encoder = CodedEncoder(LogMel(), coders, entries).eval()
    return SmoothInfoMax({"encoder": encoder}, {"sample_rate": 16000}, {})


@pytest.mark.parametrize(
    "layer, problem",
    [
        (MEANS, "codes means over recordings"),
        ("logmel", "holds no codes; those that do: logmel.sae, logmel.mean"),
        (None, "Which codes"),
    ],
)
def test_a_layer_without_moments_is_refused(model, layer, problem, corpus):
    with pytest.raises(ValueError, match=problem):
        file_page(model, f"{corpus.folder}/utterance00.wav", layer, "a.html")


def test_a_recording_is_encoded_once(model, tmp_path, corpus, monkeypatch):
    """By the command, which lists features and writes their page."""
    encoded, encode = [], SmoothInfoMax.encode_file
    paths = str(tmp_path), f"{corpus.folder}/utterance00.wav"
    monkeypatch.setattr(SmoothInfoMax, "from_pretrained", lambda _: model)

    def count(model, path, layer):
        encoded.append((path, layer))
        return encode(model, path, layer)

    monkeypatch.setattr(SmoothInfoMax, "encode_file", count)
    page = str(tmp_path / "a.html")
    main(["features", *paths, "--layer", FRAMES, "--html", page])
    assert encoded == [(paths[1], "logmel")]


def test_a_file_that_cannot_be_read_leaves_no_page(model, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("text")
    with pytest.raises(BadAudio, match="bad.wav"):
        file_page(model, bad, FRAMES, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_a_page_needs_neither_names_nor_a_decoder(model, tmp_path, corpus):
    page = tmp_path / "a.html"
    file_page(model, f"{corpus.folder}/utterance00.wav", FRAMES, page, 2, 1)
    text = page.read_text()
    assert text.count('<details class="card"') == 2
    assert "no decoder of this layer" in text
