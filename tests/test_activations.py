"""What a frozen encoder computes over a manifest, kept on disk."""

import csv
import multiprocessing
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed

from benchmarks.measure import given_back, peak_memory
from speechbrain_sim.activations import ActivationStore
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.labels import NO_LABEL, kind_of
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.rows import Rows, StoredArray, moments
from tests.brains.test_distributed import torchrun
from tests.conftest import ROOT, finish

KINDS = {"phones": "frames"}
ROWS = {"phones": "labels", "pitch": "mean"}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=12, context_channels=6)
    return encoder.eval().requires_grad_(False)


def encoded(encoder, corpus, folder, rows="labels", **options):
    return encode_manifest(
        encoder,
        {"sha256": "of a test"},
        corpus.train,
        corpus.folder,
        folder,
        rows=rows,
        **options,
    )


def labelled(store, corpus, label="phones", layers=None):
    kind = kind_of(label, KINDS)
    classes = classes_of(corpus.train, corpus.folder, label, kind)
    return store.examples(label, classes, kind, layers)


def computed(encoder, corpus, folder, label="phones", layers=None, **options):
    options = {"rows": ROWS[label], "layers": layers, **options}
    store = encoded(encoder, corpus, folder, **options)
    return labelled(store, corpus, label, layers)


def by_length(corpus):
    with open(corpus.train, newline="") as file:
        return sorted(csv.DictReader(file), key=lambda r: float(r["duration"]))


def latents_of(encoder, corpus, layer):
    """Each utterance alone, in order of length: its row, and its latent."""
    for row in by_length(corpus):
        wav = read_audio(row["wav"].replace("$data_root", corpus.folder))
        with torch.no_grad():
            yield row, encoder(wav[None])[layer]


def slow_features(encoder, corpus, layer, chosen_frames):
    """Phones' features, each utterance alone, in order of length."""
    x, y, utterance = [], [], []
    latents = latents_of(encoder, corpus, layer)
    for number, (row, latent) in enumerate(latents):
        mean = latent.mean[0].numpy()
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


def test_alignments_differ_and_replace_each_other(encoder, corpus, tmp_path):
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
        half = a.x.parts[0].stored.dtype == np.float16
        assert half == (label == "phones")


def test_all_frames_with_their_variances(encoder, corpus, tmp_path):
    store = encoded(encoder, corpus, tmp_path, "all", log_var=True)
    assert store.arrays == [
        *encoder.layer_names,
        *(f"module{m}.log_var" for m in (1, 2, 3)),
    ]
    for name in store.arrays:
        layer = name.removesuffix(".log_var")
        latents = [x for _, x in latents_of(encoder, corpus, layer)]
        expected = torch.cat(
            [x.log_var[0] if name != layer else x.mean[0] for x in latents]
        )
        lengths = torch.tensor([x.mean.shape[1] for x in latents])
        rows = store[name]
        assert rows.shape == expected.shape
        spread = expected.std(0).max()
        assert (rows[:] - expected).abs().max() < 5e-3 * spread
        owner = torch.arange(20).repeat_interleave(lengths)
        assert rows.utterance.tolist() == owner.tolist()
    assert store.ids == [row["ID"] for row in by_length(corpus)]


def test_labels_of_every_frame_are_the_nearest(encoder, corpus, tmp_path):
    store = encoded(
        encoder, corpus, tmp_path, "all", layers=["module1", "module3"]
    )
    classes = classes_of(corpus.train, corpus.folder, "phones", "frames")
    for layer in store.layers:
        hop, center = encoder.frame_geometry(layer)
        expected = []
        for row, latent in latents_of(encoder, corpus, layer):
            phones = row["phones"].split()
            for frame in range(latent.mean.shape[1]):
                at = round((center + hop * frame - 200) / 160)
                inside = 0 <= at < len(phones)
                expected.append(int(phones[at]) if inside else NO_LABEL)
        y = store.labels("phones", classes, "frames", layer)
        assert y.tolist() == expected
        examples = store.examples("phones", classes, "frames")[layer]
        assert examples.y.tolist() == [c for c in expected if c != NO_LABEL]
        kept = torch.from_numpy(np.flatnonzero(y != NO_LABEL))
        assert torch.equal(examples.x[:], store[layer][kept])
        assert np.array_equal(
            examples.utterance, store[layer].utterance[kept.numpy()]
        )
        pitch = store.labels("pitch", ["low", "high"], layer=layer)
        assert np.array_equal(
            pitch,
            np.array([r["pitch"] == "high" for r in by_length(corpus)], int)[
                store[layer].utterance
            ],
        )


def relabelled(corpus, tmp_path, **columns):
    """The same corpus with other columns in its training manifest."""
    path = tmp_path / "relabelled.csv"
    with open(corpus.train, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *columns])
        writer.writeheader()
        for number, row in enumerate(rows):
            more = {name: value(number) for name, value in columns.items()}
            writer.writerow({**row, **more})
    return type(corpus)(folder=corpus.folder, train=str(path))


def test_one_store_of_means_serves_every_utterance_label(
    encoder, corpus, tmp_path, monkeypatch
):
    corpus = relabelled(
        corpus,
        tmp_path,
        voice=lambda n: f"voice{n % 3}" if n != 4 else "",
        words=lambda n: "so " * (n % 4),
        recording=lambda n: f"tape{n // 5}",
    )
    store = encoded(encoder, corpus, tmp_path / "store", "mean")
    monkeypatch.setattr(encoder, "forward", None)  # is not called again
    store = encoded(
        encoder, corpus, tmp_path / "store", "mean", layers=["context"]
    )
    pitch = labelled(store, corpus, "pitch")["context"]
    voice = labelled(store, corpus, "voice")["context"]
    assert len(pitch.y) == 20 and len(voice.y) == 19
    number = [int(name.removeprefix("utterance")) for name in store.ids]
    known = [n for n in number if n != 4]
    assert voice.y.tolist() == [n % 3 for n in known]
    tapes = [voice.ids[i] for i in voice.utterance]
    assert tapes == [f"tape{n // 5}" for n in known]
    kept = torch.tensor([n != 4 for n in number]).nonzero()[:, 0]
    assert torch.equal(voice.x[:], store["context"][kept])
    missing = store.labels("voice", ["voice0", "voice1", "voice2"])
    assert missing[number.index(4)] == NO_LABEL
    words = store.labels("words", ["so"], "sequence")
    assert [len(tokens) for tokens in words] == [n % 4 for n in number]
    with pytest.raises(ValueError, match="no frames, as 'phones' has"):
        labelled(store, corpus, "phones")


def test_what_is_stored_is_half(encoder, corpus, tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = computed(encoder, corpus, tmp_path)
    stored = [x.x.parts[0].stored for x in found.values()]
    assert all(array.dtype == np.float16 for array in stored)
    size = sum(
        (tmp_path / f"{layer}.npy").stat().st_size
        for layer in encoder.layer_names
    )
    examples = len(found["context"].y)
    assert size == 4 * 128 + 2 * examples * (3 * 12 + 6)
    assert "The activations take 0.00 GB of disk" in caplog.text
    caplog.clear()
    computed(encoder, corpus, tmp_path)
    assert "GB of disk" not in caplog.text


def test_a_full_disk_is_noticed_before(encoder, corpus, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="fewer --layers"):
        computed(encoder, corpus, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_what_is_not_the_same_is_refused_or_replaced(encoder, corpus, tmp_path):
    encoded(encoder, corpus, tmp_path, "mean", layers=["module1"])
    store = ActivationStore.open(tmp_path, encoder="of a test", rows="mean")
    with pytest.raises(ValueError, match="of another encoder"):
        ActivationStore.open(tmp_path, encoder="another", rows="mean")
    with pytest.raises(KeyError, match="no 'module2', only module1"):
        store["module2"]
    # other layers, other rows, another encoder: encoded again
    assert len(encoded(encoder, corpus, tmp_path, "mean").arrays) == 4
    rows = encoded(encoder, corpus, tmp_path, "labels")["module1"]
    assert len(rows) > 1000
    with pytest.raises(ValueError, match="rows must be"):
        encoded(encoder, corpus, tmp_path, "sum")


def test_statistics_are_those_of_all_rows(encoder, corpus, tmp_path):
    store = encoded(encoder, corpus, tmp_path)
    for layer in store.layers:
        rows = store[layer][:].double()
        mean, std = store.statistics(layer)
        torch.testing.assert_close(mean, rows.mean(0).float())
        torch.testing.assert_close(std, rows.std(0).float())
        units = Rows(store[layer].parts, mean, std)[:]
        assert units.mean(0).abs().max() < 1e-4
        assert (units.std(0) - 1).abs().max() < 1e-4


def test_a_killed_encoding_goes_on(encoder, corpus, tmp_path, monkeypatch):
    """Nothing that was recorded is encoded again; all bits are the same."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr("speechbrain_sim.extraction.SAVE_SECONDS", 0)
    whole = computed(encoder, corpus, tmp_path / "whole", max_seconds=3)
    forward, sizes = encoder.forward, []

    def counts(wavs, *args, **options):
        sizes.append(len(wavs))
        if len(sizes) in (3, 5):
            raise Killed
        return forward(wavs, *args, **options)

    monkeypatch.setattr(encoder, "forward", counts)
    for _ in range(2):
        with pytest.raises(Killed):
            computed(encoder, corpus, tmp_path / "killed", max_seconds=3)
        with pytest.raises(ValueError, match="not complete"):
            ActivationStore.open(tmp_path / "killed")
    killed = computed(encoder, corpus, tmp_path / "killed", max_seconds=3)
    del sizes[4], sizes[2]
    assert sum(sizes) == 20 and len(sizes) > 5
    for layer, found in whole.items():
        assert torch.equal(found.x[:], killed[layer].x[:])
        assert np.array_equal(found.y, killed[layer].y)
        assert found.ids == killed[layer].ids
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}


def test_a_killed_encoding_of_something_else_begins_anew(
    encoder, corpus, tmp_path, monkeypatch
):
    """Not on the file that yet another one has begun, either."""
    forward, folder, calls = encoder.forward, tmp_path / "killed", []

    def killed(alignment, batches, seconds):
        def counts(*args, **options):
            calls.append(alignment)
            if calls.count(alignment) > batches:
                raise KeyboardInterrupt
            return forward(*args, **options)

        monkeypatch.setattr("speechbrain_sim.extraction.SAVE_SECONDS", seconds)
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
        assert torch.equal(found.x[:], again[layer].x[:])


def as_if_killed(folder, positions=()):
    """A complete store as it was before it was finished; some not done."""
    described = folder / "store.json"
    described.write_text(
        described.read_text().replace('"complete": true', '"complete": false')
    )
    (folder / "statistics.npz").unlink()
    done = np.load(folder / "done.npy", mmap_mode="r+")
    done[list(positions)] = False
    done.flush()
    return ActivationStore(folder)


def test_killed_at_the_very_end(encoder, corpus, tmp_path, monkeypatch):
    """All is encoded, but the statistics are missing."""
    whole = encoded(encoder, corpus, tmp_path)
    statistics = {name: whole.statistics(name) for name in whole.arrays}
    as_if_killed(tmp_path)
    monkeypatch.setattr(encoder, "forward", None)  # is not called again
    again = encoded(encoder, corpus, tmp_path)
    for name, expected in statistics.items():
        assert torch.equal(again.statistics(name), expected)


def test_what_was_written_but_not_flushed_is_encoded_again(
    encoder, corpus, tmp_path
):
    """A flag follows its data: without the flag, half-written rows go."""
    whole = encoded(encoder, corpus, tmp_path / "whole")
    encoded(encoder, corpus, tmp_path / "other")
    store = as_if_killed(tmp_path / "other", positions=(3, 17))
    for position in (3, 17):
        values = {n: whole[n][:] for n in store.arrays}
        here = whole["context"].utterance == position
        zeros = {n: np.zeros_like(x[here]) for n, x in values.items()}
        store.write(position, zeros)  # and no flush: killed
    with pytest.raises(ValueError, match="lacks 2 utterances"):
        store.finish()
    again = encoded(encoder, corpus, tmp_path / "other")
    for name in again.arrays:
        assert torch.equal(again[name][:], whole[name][:])


def test_a_row_too_many_is_refused(encoder, corpus, tmp_path):
    store = encoded(encoder, corpus, tmp_path, "mean", layers=["context"])
    with pytest.raises(ValueError, match="has 2 rows of context, but 1 by"):
        store.write(0, {"context": np.zeros((2, 6))})


# several writers -------------------------------------------------------------


def rows_of(store, position):
    """What `store.write` needs to write an utterance into another store."""
    here = np.flatnonzero(store["context"].utterance == position)
    return {
        name: store[name][torch.from_numpy(here)].numpy()
        for name in store.arrays
    }


def write_share(folder, source, share):
    """Writes every other utterance of one store into another."""
    store, source = ActivationStore(folder), ActivationStore(source)
    for position in range(share, len(store.ids), 2):
        store.write(position, rows_of(source, position))
        if position % 3 == 0:
            store.flush()
    store.flush()


def test_two_processes_write_one_store(encoder, corpus, tmp_path):
    whole = encoded(encoder, corpus, tmp_path / "whole")
    counts = np.bincount(whole["context"].utterance).tolist()
    store = ActivationStore.create(
        tmp_path / "shared",
        whole.made_of,
        read_manifest(corpus.train, corpus.folder),
        dict(zip(whole.ids, whole.recordings, strict=True)),
        {layer: (place, counts) for layer, place in whole.layers.items()},
        [(position, rows_of(whole, position)) for position in range(8)],
    )
    assert store.done.tolist() == [True] * 8 + [False] * 12
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [(store.folder, whole.folder, share) for share in (0, 1)]
        pool.starmap(write_share, jobs)
    assert store.done.all()
    store.finish()
    store = ActivationStore.open(store.folder)
    for name in store.arrays:
        spread = whole[name][:].std(0).max()
        assert (store[name][:] - whole[name][:]).abs().max() < 2e-3 * spread
        for mine, theirs in zip(
            store.statistics(name), whole.statistics(name), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def encode_as_a_rank(manifest, data_folder, folder):
    """What each rank does: see below."""
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=12, context_channels=6)
    encoder.eval().requires_grad_(False)
    forward, sizes = encoder.forward, []
    encoder.forward = lambda wavs, *args, **options: (
        sizes.append(len(wavs)) or forward(wavs, *args, **options)
    )
    store = encode_manifest(
        encoder,
        {"sha256": "of a test"},
        manifest,
        data_folder,
        folder,
        rows="labels",
        max_seconds=3,
    )
    assert store.complete
    rank = torch.distributed.get_rank()
    Path(folder, f"rank{rank}").write_text(str(sum(sizes)))


def test_shares_may_differ_by_days(encoder, corpus, tmp_path, monkeypatch):
    dist, groups, awaited = torch.distributed, {}, []
    barrier, limit = dist.barrier, dist.distributed_c10d._set_pg_timeout

    def set_limit(timeout, group):
        groups[group] = timeout
        limit(timeout, group)

    def wait(group=None, **options):
        awaited.append(group)
        return barrier(group, **options)

    monkeypatch.setattr(dist.distributed_c10d, "_set_pg_timeout", set_limit)
    monkeypatch.setattr(dist, "barrier", wait)
    monkeypatch.setenv("RANK", "0")
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        encoded(encoder, corpus, tmp_path, max_seconds=3)
    finally:
        dist.destroy_process_group()
    assert [*groups.values()] and min(groups.values()).days >= 1
    assert [group in groups for group in awaited[-2:]] == [True, True]


def test_two_ranks_share_the_work(encoder, corpus, tmp_path):
    whole = encoded(encoder, corpus, tmp_path / "whole", max_seconds=3)
    shared = tmp_path / "shared"
    script = tmp_path / "ranks.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.test_activations import encode_as_a_rank\n"
        "encode_as_a_rank(*sys.argv[1:])\n"
    )
    finish(torchrun(script, corpus.train, corpus.folder, shared))
    sizes = [int((shared / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert sum(sizes) == 20 and min(sizes) >= 4
    store = ActivationStore.open(shared)
    for name in store.arrays:
        assert torch.equal(store[name][:], whole[name][:])
        assert torch.equal(store.statistics(name), whole.statistics(name))
    # one of two ranks died: its share is divided anew
    as_if_killed(shared, range(0, 20, 2))
    finish(torchrun(script, corpus.train, corpus.folder, shared))
    sizes = [int((shared / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert 10 <= sum(sizes) <= 20 and min(sizes) >= 2  # whole batches
    again = ActivationStore.open(shared)
    for name in store.arrays:
        assert torch.equal(again[name][:], whole[name][:])


# memory ------------------------------------------------------------------------


def repeated(folder, seconds, utterances):
    """A manifest that names one file of noise again and again."""
    folder.mkdir()
    samples = 16000 * seconds
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples)
    soundfile.write(folder / "noise.wav", noise, 16000)
    lines = ["ID,duration,wav,sample_rate,num_samples"]
    lines += [
        f"u{n:05},{seconds},$data_root/noise.wav,16000,{samples}"
        for n in range(utterances)
    ]
    (folder / "train.csv").write_text("\n".join(lines))
    return SimpleNamespace(train=str(folder / "train.csv"), folder=str(folder))


@pytest.mark.parametrize(
    "minutes", [60, pytest.param(600, marks=pytest.mark.slow)]
)
def test_hours_are_encoded_in_little_memory(tmp_path, minutes):
    """Ten hours, and their twin: four times as much needs no more memory."""
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=4, context_channels=2).eval()

    def encode(name, minutes):
        corpus = repeated(tmp_path / name, 15, 4 * minutes)
        store = tmp_path / name / "store"
        return lambda: encoded(encoder, corpus, store, "all", max_seconds=15)

    encode("first", 1)()  # what torch needs the first time
    with given_back():
        few = peak_memory(encode("few", minutes // 4))
        many = peak_memory(encode("many", minutes))
    store = tmp_path / "many/store"
    rows = ActivationStore.open(store)["module1"]
    assert len(rows) == 4 * minutes * encoder.output_lengths(240000, "module1")
    size = sum(path.stat().st_size for path in store.glob("*.npy"))
    # three quarters of the store are beyond that of the few
    assert many - few < size / 3 and size > 545000 * minutes


# rows ----------------------------------------------------------------------------


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
    store = encoded(encoder, corpus, tmp_path)
    halves = labelled(store, corpus)
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
                units = moments(stored.split(100))
                x[layer] = Rows(stored.parts, *units)
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


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n, 3)).astype(np.float32) for n in (5, 1, 9)]
    whole = torch.from_numpy(np.concatenate(arrays))
    return [StoredArray(x, np.array([0, 1, len(x)])) for x in arrays], whole


def test_rows_of_several_parts_are_counted_through(parts):
    parts, whole = parts
    joined = Rows(parts[:1]).join(Rows(parts[1:2])).join(Rows(parts[2:]))
    chosen = torch.from_numpy(np.random.default_rng(1).integers(0, 15, (4, 7)))
    for rows in (Rows(parts), joined):
        assert torch.equal(rows[chosen], whole[chosen])
        assert torch.equal(torch.cat(list(rows.split(4))), whole)
        assert torch.equal(rows[3:11:2], whole[3:11:2])
        assert rows.utterance.tolist() == [0, 1, 1, 1, 1, 2] + [4] + [5] * 8
    mean, std = moments(Rows(parts).split(4))
    torch.testing.assert_close(mean, whole.mean(0))
    torch.testing.assert_close(std, whole.std(0))
    units = Rows(parts, mean, std)
    torch.testing.assert_close(units[:], (whole - mean) / std)


def test_random_batches_have_every_row_once(parts):
    parts, whole = parts
    index = np.array([0, 2, 4])
    rows = Rows([parts[0]._replace(index=index), parts[2]])
    drawn = [
        list(rows.random_batches(5, torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    ]
    assert [len(batch) for batch in drawn[0]] == [5, 5, 2]
    one, same, other = map(torch.cat, drawn)
    assert torch.equal(one, same) and not torch.equal(one, other)
    expected = torch.cat([whole[[0, 2, 4]], whole[6:]])
    assert torch.equal(one.sort(0).values, expected.sort(0).values)
    assert rows.utterance.tolist() == [0, 1, 1] + [2] + [3] * 8
