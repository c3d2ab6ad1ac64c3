"""Long files, piece by piece; and features of a corpus, kept on disk."""

import csv
import shutil
from collections import namedtuple

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_sim.activations import (
    Examples,
    HalfFeatures,
    compute_features,
    moments,
)
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.data.audio import BadAudio, read_audio
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.features import encode_file, stream_file


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return GreedyEncoder(channels=12, context_channels=6).eval()


def write_noise(path, seconds, rate=16000, channels=1):
    generator = np.random.default_rng(0)
    noise = 0.1 * generator.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (8000, 1)])
@pytest.mark.parametrize("chunk_seconds", [0.013, 0.5, 60])
def test_a_streamed_file_is_the_whole_file(
    tmp_path, encoder, rate, channels, chunk_seconds
):
    path = write_noise(tmp_path / "a.wav", 2.3, rate, channels)
    with torch.no_grad():
        whole = encoder(read_audio(path)[None])
    arrays = encode_file(
        encoder, path, tmp_path / "out", chunk_seconds=chunk_seconds
    )
    assert list(arrays) == encoder.layer_names
    for name, array in arrays.items():
        assert isinstance(array, np.memmap) and array.dtype == np.float32
        np.testing.assert_allclose(
            array, whole[name].mean[0].numpy(), atol=1e-5
        )
    assert not list((tmp_path / "out").glob("*.part.npy"))


def test_only_the_layers_asked_for(tmp_path, encoder):
    path = write_noise(tmp_path / "a.wav", 1)
    arrays = encode_file(encoder, path, tmp_path / "out", ["module2"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["module2.npy"]
    assert arrays["module2"].shape == (
        encoder.output_lengths(16000, "module2"),
        12,
    )


def test_a_file_too_short_is_named(tmp_path, encoder):
    path = write_noise(tmp_path / "blip.wav", 0.00125)
    with pytest.raises(BadAudio, match="blip.wav: 20 samples are too few"):
        list(stream_file(encoder, path))
    with pytest.raises(BadAudio, match="missing.wav: The file is missing"):
        encode_file(encoder, tmp_path / "missing.wav", tmp_path / "out")


def test_a_run_that_was_stopped_leaves_no_finished_array(
    tmp_path, encoder, monkeypatch
):
    path = write_noise(tmp_path / "a.wav", 3)
    calls = []

    def stops(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_audio(*args)

    monkeypatch.setattr("speechbrain_sim.activations.read_audio", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_file(encoder, path, tmp_path / "out", chunk_seconds=0.5)
    assert not (tmp_path / "out" / "context.npy").exists()


def test_gradients_are_not_kept(tmp_path, encoder):
    path = write_noise(tmp_path / "a.wav", 1)
    for means in stream_file(encoder, path, ["context"], 0.3):
        assert not means["context"].requires_grad


# features of a corpus --------------------------------------------------------


def computed(encoder, corpus, folder, label="phones", layers=None, **options):
    return compute_features(
        encoder,
        {"sha256": "of a test"},
        corpus.train,
        corpus.folder,
        label,
        classes_of(corpus.train, corpus.folder, label),
        layers or encoder.layer_names,
        folder,
        **options,
    )


def slow_features(encoder, corpus, layer, chosen_frames):
    """Phones' features, each utterance alone, in order of length."""
    with open(corpus.train, newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda r: float(r["duration"]))
    x, y, utterance = [], [], []
    for number, row in enumerate(rows):
        wav = read_audio(row["wav"].replace("$data_root", corpus.folder))
        with torch.no_grad():
            mean = encoder(wav[None])[layer].mean[0].numpy()
        phones = [int(phone) for phone in row["phones"].split()]
        x.append(mean[chosen_frames(len(phones), len(mean))])
        y += phones
        utterance += [number] * len(phones)
    return np.concatenate(x), y, utterance


CUTS = {
    # at the top, frame i + 1 is centred at the label's 160 i + 200, or nearly
    "centre": lambda labels, frames: slice(1, labels + 1),
    "front": lambda labels, frames: slice(frames - labels, frames),
    "end": lambda labels, frames: slice(0, labels),
}


@pytest.mark.parametrize("alignment", CUTS)
def test_phones_are_cut_as_asked(encoder, corpus, tmp_path, alignment):
    found = computed(
        encoder, corpus, tmp_path, layers=["module3"], alignment=alignment
    )["module3"]
    x, y, utterance = slow_features(encoder, corpus, "module3", CUTS[alignment])
    assert found.y.tolist() == y and found.utterance.tolist() == utterance
    error = np.abs(np.asarray(found.x) - x) / x.std(0).max()
    assert error.max() < 5e-3


def test_alignments_differ_and_are_remembered(encoder, corpus, tmp_path):
    found = {
        alignment: np.array(
            computed(
                encoder,
                corpus,
                tmp_path,
                layers=["context"],
                alignment=alignment,
            )["context"].x
        )
        for alignment in CUTS
    }
    assert not np.allclose(found["centre"], found["front"])
    assert not np.allclose(found["centre"], found["end"])
    with pytest.raises(ValueError, match="'centre', 'front' or 'end', got"):
        computed(encoder, corpus, tmp_path, alignment="middle")


def test_lower_layers_have_eight_frames_per_label(encoder, corpus, tmp_path):
    x, y, _ = slow_features(
        encoder,
        corpus,
        "module1",
        lambda labels, frames: frames - 1 - 8 * np.arange(labels)[::-1],
    )
    found = computed(
        encoder, corpus, tmp_path, layers=["module1"], alignment="front"
    )["module1"]
    assert np.abs(np.asarray(found.x) - x).max() < 5e-3 * x.std(0).max()


@pytest.mark.parametrize("label", ["phones", "pitch"])
def test_batches_do_not_matter(encoder, corpus, tmp_path, label):
    alone, some = (
        computed(encoder, corpus, tmp_path / str(s), label, max_seconds=s)
        for s in (0.1, 3)
    )
    for layer in encoder.layer_names:
        a, b = alone[layer], some[layer]
        assert (a.y == b.y).all() and (a.utterance == b.utterance).all()
        assert a.ids == b.ids
        spread = np.asarray(a.x).std(0).max()
        tolerance = {"phones": 5e-3, "pitch": 1e-4}[label]
        assert np.abs(np.asarray(a.x) - np.asarray(b.x)).max() < (
            tolerance * spread
        )
        assert isinstance(a.x, HalfFeatures) == (label == "phones")


def test_what_is_stored_is_half(encoder, corpus, tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = computed(encoder, corpus, tmp_path)
    assert all(x.x.stored.dtype == np.float16 for x in found.values())
    size = sum(path.stat().st_size for path in tmp_path.glob("*[a-z1-3].npy"))
    examples = len(found["context"].y)
    assert size == 4 * 128 + 2 * examples * (3 * 12 + 6)
    assert f"{examples} examples of 42 channels take 0.00 GB" in caplog.text
    caplog.clear()
    computed(encoder, corpus, tmp_path)
    assert "examples of" not in caplog.text


def test_a_full_disk_is_noticed_before(encoder, corpus, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="fewer --layers"):
        computed(encoder, corpus, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_killed_encoding_goes_on(encoder, corpus, tmp_path, monkeypatch):
    """Nothing that was recorded is encoded again; all bits are the same."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr("speechbrain_sim.activations.SAVE_SECONDS", 0)
    whole = computed(encoder, corpus, tmp_path / "whole", max_seconds=3)
    forward, heard = encoder.forward, []

    def counts(wavs, *args, **options):
        heard.append(len(wavs))
        if len(heard) in (3, 5):
            raise Killed
        return forward(wavs, *args, **options)

    monkeypatch.setattr(encoder, "forward", counts)
    for _ in range(2):
        with pytest.raises(Killed):
            computed(encoder, corpus, tmp_path / "killed", max_seconds=3)
    killed = computed(encoder, corpus, tmp_path / "killed", max_seconds=3)
    del heard[4], heard[2]
    assert sum(heard) == 20 and len(heard) > 5
    for layer, found in whole.items():
        assert np.array_equal(found.x, killed[layer].x)
        assert np.array_equal(found.y, killed[layer].y)
        assert found.ids == killed[layer].ids
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}


def test_a_killed_encoding_of_something_else_begins_anew(
    encoder, corpus, tmp_path, monkeypatch
):
    """Not on the file that yet another one has begun, either."""
    forward, folder, heard = encoder.forward, tmp_path / "killed", []

    def killed(alignment, batches, seconds):
        def counts(*args, **options):
            heard.append(alignment)
            if heard.count(alignment) > batches:
                raise KeyboardInterrupt
            return forward(*args, **options)

        monkeypatch.setattr("speechbrain_sim.activations.SAVE_SECONDS", seconds)
        monkeypatch.setattr(encoder, "forward", counts)
        with pytest.raises(KeyboardInterrupt):
            computed(
                encoder, corpus, folder, max_seconds=3, alignment=alignment
            )
        monkeypatch.undo()

    killed("centre", 3, seconds=0)
    killed("end", 2, seconds=1000)
    again = computed(encoder, corpus, folder, max_seconds=3)
    fresh = computed(encoder, corpus, tmp_path / "fresh", max_seconds=3)
    for layer, found in fresh.items():
        assert np.array_equal(found.x, again[layer].x)


def test_features_that_hardly_vary_are_not_rounded_away(corpus, tmp_path):
    class Faint(LogMel):
        def forward(self, *args, **options):
            latent = super().forward(*args, **options)["logmel"]
            faint = 5 + 1e-5 * latent.mean.double()
            return {"logmel": latent._replace(mean=faint.float())}

    loud = computed(LogMel(), corpus, tmp_path / "loud")["logmel"].x
    faint = computed(Faint(), corpus, tmp_path / "faint")["logmel"].x
    loud, faint = np.asarray(loud), np.asarray(faint, np.float64)
    spread = loud.std(0).max()
    back = (faint - 5) / 1e-5
    # float32 itself has a resolution of 4.8e-7 at 5
    assert np.abs(back - loud).max() < 0.05 + 5e-3 * spread
    assert np.corrcoef(back[:, 3], loud[:, 3])[0, 1] > 0.999


def test_probes_on_halves_are_probes_on_floats(encoder, corpus, tmp_path):
    """Drawn from disk, in units of all, as trained in memory."""
    halves = computed(encoder, corpus, tmp_path)
    floats = {
        layer: torch.from_numpy(
            slow_features(encoder, corpus, layer, CUTS["centre"])[0]
        )
        for layer in ("module3", "context")
    }
    y = torch.from_numpy(halves["context"].y)
    states = []
    for kind in ("disk", "memory"):
        x = {}
        for layer, whole in floats.items():
            if kind == "disk":
                stored = halves[layer].x
                units = moments(Examples([stored]), chunk=100)
                x[layer] = Examples([stored], *units)
            else:
                x[layer] = (whole - whole.mean(0)) / whole.std(0)
        batches = ProbeBatches(x, y, [1, 2], 1, 64)
        widths = {layer: f.shape[1] for layer, f in x.items()}
        brain = ProbeBrain(
            make_probes(widths, 5, batches.names, True),
            lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
            {"max_grad_norm": float("inf")},
            {"device": "cpu"},
        )
        brain.train_probes(batches, range(1, 3))
        answers = brain.predict(x, chunk=100)
        states.append((brain.modules.state_dict(), answers))
    (disk, says), (memory, said) = states
    for name, weight in memory.items():
        torch.testing.assert_close(disk[name], weight, atol=5e-3, rtol=0)
    for layer in says:
        assert (says[layer] == said[layer]).float().mean() > 0.99


def test_examples_of_several_parts_are_counted_through():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in (5, 1, 9)]
    whole = torch.from_numpy(np.concatenate(parts))
    chosen = torch.from_numpy(rng.integers(0, 15, size=(4, 7)))
    assert torch.equal(Examples(parts)[chosen], whole[chosen])
    assert torch.equal(torch.cat(list(Examples(parts).split(4))), whole)
    mean, std = moments(Examples(parts), chunk=4)
    torch.testing.assert_close(mean, whole.mean(0))
    torch.testing.assert_close(std, whole.std(0))
