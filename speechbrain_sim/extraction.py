"""From manifests to stores of activations: encodes what is missing."""

import contextlib
import itertools
import math
import time
from datetime import timedelta

import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils import distributed
from torch import distributed as dist

from speechbrain_sim import __version__, activations
from speechbrain_sim.activations import (
    LABELS,
    LOG_VAR,
    MEAN,
    ActivationStore,
    layer_of,
)
from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import SAMPLE_RATE, AudioFile
from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.labels import frames_of_labels, num_labels
from speechbrain_sim.data.tables import manifest_hash
from speechbrain_sim.encoders.base import check_finite, masked_mean
from speechbrain_sim.features import CHUNK_SECONDS

#: of lengths, within which utterances are batched
BUCKETS = 20
ORDER = {"shuffle": False, "batch_ordering": "descending"}
#: between two records of how far encoding has come
SAVE_SECONDS = 30
#: until processes end that wait for one whose share takes longer
PATIENCE = timedelta(days=1)


def encode_manifest(
    encoder,
    description,
    manifest,
    data_folder,
    folder,
    layers=None,
    rows=MEAN,
    log_var=False,
    alignment="centre",
    max_seconds=120.0,
    device="cpu",
    only=None,
    half=True,
    alone=False,
):
    """Encodes a manifest once, or what is missing of it.

    The means of posteriors are kept, never samples. Under torch.distributed,
    every rank encodes its share. Returns the ActivationStore.

    Arguments
    ---------
    encoder, description : Encoder, dict
        From `load_encoder`.
    manifest, data_folder, folder : str or Path
        See `read_manifest`; of the store: that of anything else is replaced.
    layers, only : list of str, optional
        All layers, and utterances of all IDs, by default.
    rows : str
        "mean": one row per utterance, the mean of its frames, in float32.
        "labels": the frame of each 10 ms; "all": every frame.
    log_var, half, alignment, alone : bool, bool, str, bool
        Log-variances, too; float16; see `frames_of_labels`; not in batches.
    max_seconds, device : float, str
        Audio encoded at once, with padding, longer utterances in pieces; where.
    """
    if rows not in activations.KEPT:
        raise ValueError(f"rows must be in {activations.KEPT}, got {rows!r}")
    made_of = {
        "version": __version__,
        "encoder": description["sha256"],
        "arguments": description.get("arguments"),
        "manifest": manifest_hash(manifest, data_folder),
        "rows": rows,
        "alignment": alignment if rows == LABELS else None,
        "sampled": False,
        "only": only,
        "exact": None if half else True,
        "alone": alone or None,
    }
    layers = layers_with(encoder, rows, layers)
    gaussian = filter(encoder.has_posterior, layers if log_var else ())
    arrays = layers + [layer + LOG_VAR for layer in gaussian]
    dataset = make_dataset(manifest, data_folder)
    dataset.data_ids = only or dataset.data_ids
    dataset = dataset.filtered_sorted(sort_key="duration")
    job = _Encoding(encoder.to(device), arrays, dataset, made_of, device)
    job.run(folder, job.batches(max_seconds, alone))
    return ActivationStore.open(folder)


def be_patient(group=None):
    """Lets ranks that are connected wait for a day; returns the group."""
    dist.distributed_c10d._set_pg_timeout(PATIENCE, group)
    return group


def layers_with(encoder, rows, layers=None):
    """Returns layers with such rows of their own; all, if none are asked for.

    A ValueError if one that is asked for has none: see `Encoder.pools`.
    """
    names = layers or encoder.layer_names
    pooled = [n for n in names if rows != MEAN and encoder.pools(n)]
    if layers and pooled:
        raise ValueError(
            f"{pooled[0]} codes the mean of a recording (pooling: mean) and has "
            f"no frames of its own: choose other layers, or a label of "
            f"utterances."
        )
    return [n for n in names if n not in pooled]


class _Encoding:
    """Fills a store with what an encoder computes."""

    def __init__(self, encoder, arrays, dataset, made_of, device):
        self.encoder, self.arrays, self.dataset = encoder, arrays, dataset
        self.made_of, self.device = made_of, device
        self.layers = [name for name in arrays if layer_of(name) == name]
        self.rows = {n: dataset.data[n] for n in dataset.data_ids}
        self.samples = [r["num_samples"] for r in self.rows.values()]
        # samples (per second) beyond which an utterance is read in pieces
        self.longest = SAMPLE_RATE if encoder.streams else math.inf

    def batches(self, max_seconds, alone):
        """Lists the positions of what is encoded at once, the longest first."""
        self.longest *= max_seconds
        if alone:
            return [[position] for position in reversed(range(len(self.rows)))]
        sampler = self.dataset, max_seconds, BUCKETS
        return list(DynamicBatchSampler(*sampler, **ORDER))

    def run(self, folder, batches):
        """Encodes what is missing; batches are the same after a kill."""
        distributed.run_on_main(self.begin, (folder, batches[0]))
        store = ActivationStore(folder)
        done = store.done
        several = distributed.is_distributed_initialized()
        patient = (
            be_patient(dist.new_group(backend="gloo")) if several else None
        )
        distributed.ddp_barrier()  # all have read it before anyone writes
        if store.complete:
            return
        left = [batch for batch in batches if not done[batch].all()]
        if several:
            left = left[dist.get_rank() :: dist.get_world_size()]
        saved = time.monotonic()
        for position, values in self.encode(left):
            store.write(position, values)
            if time.monotonic() - saved > SAVE_SECONDS:
                store.flush()
                saved = time.monotonic()
        store.flush()
        if several:
            dist.barrier(patient)
        if distributed.if_main_process():
            store.finish()
        if several:
            dist.barrier(patient)

    def begin(self, folder, batch):
        """Makes the store, unless it is there, with a first batch in it."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            store = ActivationStore.open(folder, False, **self.made_of)
            wanted, there = set(self.arrays), set(store.arrays)
            if wanted == there or (store.complete and wanted < there):
                return store.check()
        recordings = {n: r.get("recording", n) for n, r in self.rows.items()}
        places, first = {}, []
        for position, values in self.encode([batch]):
            if not isinstance(values, dict):  # of a long one, the first piece
                position = position if self.made_of["rows"] == MEAN else None
                values = next(values)
            first.append((position, values))
        for layer in self.layers:
            counts = [len(self.kept(layer, n)) for n in self.samples]
            places[layer] = self.encoder.frame_geometry(layer), counts
        content = recordings, places, first
        ActivationStore.create(folder, self.made_of, self.rows, *content)

    @torch.no_grad()
    def encode(self, batches):
        """Yields the position of each utterance, and its rows of each array.

        Those of a long one come in pieces.
        """
        long = [b for b in batches if self.samples[b[0]] > self.longest]
        for position in itertools.chain(*long):
            yield position, self.stream(position)
        batches = [batch for batch in batches if batch not in long]
        loader = make_dataloader(self.dataset, batch_sampler=batches)
        bar = Bar(loader, "encoding", disable=len(batches) < 2, unit="batch")
        for positions, batch in zip(batches, bar, strict=True):
            samples = [self.samples[position] for position in positions]
            lengths = torch.tensor(samples, device=self.device)
            wavs = batch.sig.data.to(self.device)
            latents = self.encoder(wavs, lengths, self.layers, sample=False)
            check_finite(latents, batch.id)
            rows = {n: self.select(n, latents, samples) for n in self.arrays}
            for row, position in enumerate(positions):
                yield position, {name: x[row] for name, x in rows.items()}

    @torch.no_grad()
    def stream(self, position):
        """Yields the rows of each array of a long utterance, in pieces."""
        item = self.dataset.data_ids[position]
        row = self.rows[item]
        begin, samples = int(row.get("start") or 0), self.samples[position]
        kept = {n: self.kept(layer_of(n), samples) for n in self.arrays}
        sums, frames = dict.fromkeys(kept, 0), dict.fromkeys(kept, 0)
        pooled = self.made_of["rows"] == MEAN
        with AudioFile(row["wav"]) as file:
            wavs = file.pieces(CHUNK_SECONDS, begin, begin + samples)
            wavs = (wav.to(self.device) for wav in wavs)
            for latents in self.encoder.stream(wavs, self.layers, sample=False):
                check_finite(latents, [item])
                rows = {}
                for name in self.arrays:
                    x = self.values(name, latents)[0]
                    sums[name] += x.sum(0).cpu().double()
                    frames[name] += len(x)
                    here = kept[name] < len(x)
                    rows[name] = x[kept[name][here].to(x.device)].cpu().numpy()
                    kept[name] = kept[name][~here] - len(x)
                if not pooled:
                    yield rows
        if pooled:
            means = {n: x[None] / frames[n] for n, x in sums.items()}
            yield {n: x.float().numpy() for n, x in means.items()}

    def values(self, name, latents):
        """Returns an array's values for a batch, (batch, time, channels)."""
        latent = latents[layer_of(name)]
        return latent.mean if name in self.layers else latent.log_var

    def select(self, name, latents, samples):
        """Returns the rows of each utterance of a batch, (rows, channels)."""
        layer, x = layer_of(name), self.values(name, latents)
        if self.made_of["rows"] == MEAN:
            x = masked_mean(x, latents[layer].lengths)[:, None].cpu()
        kept = (self.kept(layer, count).to(x.device) for count in samples)
        return [x[row, at].cpu().numpy() for row, at in enumerate(kept)]

    def kept(self, layer, samples):
        """Returns the frames of an utterance that are kept, (rows,)."""
        if self.made_of["rows"] == MEAN:
            return torch.arange(1)  # of one frame, the mean
        frames = self.encoder.output_lengths(samples, layer)
        if self.made_of["rows"] != LABELS:
            return torch.arange(frames)
        place, count = self.encoder.frame_geometry(layer), num_labels(samples)
        alignment = self.made_of["alignment"]
        return frames_of_labels(count, *place, frames, alignment)
