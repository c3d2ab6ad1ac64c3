"""From manifests to stores of activations: encodes what is missing."""

import time

import numpy as np
import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils import distributed
from tqdm import tqdm

from speechbrain_sim.activations import (
    FORMAT,
    KEPT,
    LABELS,
    LOG_VAR,
    MEAN,
    ActivationStore,
    layer_of,
)
from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.labels import frames_of_labels, num_labels
from speechbrain_sim.encoders.base import masked_mean
from speechbrain_sim.files import sha256

#: of lengths, within which utterances are batched
BUCKETS = 20
#: between two records of how far encoding has come
SAVE_SECONDS = 30


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
):
    """Encodes a manifest once, or what is missing of it.

    Activations are the means of posteriors, never samples. Under
    torch.distributed, every rank encodes its share.

    Arguments
    ---------
    encoder, description : Encoder, dict
        From `load_encoder`.
    manifest, data_folder : str
        A csv from `speechbrain_sim.data`, and its `$data_root`.
    folder : str or Path
        Of the store; a store of something else is replaced.
    layers : list of str, optional
        All by default.
    rows : str
        "mean": one row per utterance, the mean of its frames, in float32.
        "labels": the frame of each 10 ms label; "all": every frame; both in
        half precision.
    log_var : bool
        Whether to keep the log-variances of posteriors, too.
    alignment : str
        See `frames_of_labels`.
    max_seconds : float
        Audio encoded at once, with its padding.
    device : str
        Of the encoder.

    Returns
    -------
    ActivationStore
    """
    if rows not in KEPT:
        raise ValueError(f"rows must be one of {KEPT}, got {rows!r}")
    made_of = {
        "format": FORMAT,
        "encoder": description["sha256"],
        "manifest": sha256(manifest),
        "rows": rows,
        "alignment": alignment if rows == LABELS else None,
        "sampled": False,
    }
    job = _Encoding(encoder.to(device), layers, log_var, made_of, device)
    store = job.find(folder)
    if store is None or not store.complete:
        job.run(folder, manifest, data_folder, max_seconds)
    return ActivationStore.open(folder)


class _Encoding:
    """Fills a store with what an encoder computes."""

    def __init__(self, encoder, layers, log_var, made_of, device):
        self.encoder, self.made_of, self.device = encoder, made_of, device
        self.layers = list(layers or encoder.layer_names)
        self.arrays = list(self.layers)
        if log_var:
            with_posterior = filter(encoder.has_posterior, self.layers)
            self.arrays += [layer + LOG_VAR for layer in with_posterior]

    def find(self, folder):
        """Returns the store of the same in a folder; None if there is none."""
        try:
            store = ActivationStore.open(folder, False, **self.made_of)
        except (FileNotFoundError, ValueError):
            return None
        wanted, there = set(self.arrays), set(store.arrays)
        enough = wanted <= there if store.complete else wanted == there
        return store if enough else None

    def run(self, folder, manifest, data_folder, max_seconds):
        """Encodes what is missing; batches are the same after a kill."""
        dataset = make_dataset(manifest, data_folder)
        self.dataset = dataset.filtered_sorted(sort_key="duration")
        self.rows = {n: dataset.data[n] for n in self.dataset.data_ids}
        self.samples = [int(r["num_samples"]) for r in self.rows.values()]
        options = {"shuffle": False, "batch_ordering": "descending"}
        batches = list(
            DynamicBatchSampler(self.dataset, max_seconds, BUCKETS, **options)
        )
        distributed.run_on_main(self.begin, (folder, manifest, batches[0]))
        store = ActivationStore(folder)
        done = store.done
        distributed.ddp_barrier()  # all have read it before anyone writes
        left = [batch for batch in batches if not done[batch].all()]
        if distributed.is_distributed_initialized():
            ranks = torch.distributed.get_world_size()
            left = left[torch.distributed.get_rank() :: ranks]
        saved = time.monotonic()
        for utterances in self.encode(left):
            for utterance in utterances:
                store.write(*utterance)
            if time.monotonic() - saved > SAVE_SECONDS:
                store.flush()
                saved = time.monotonic()
        store.flush()
        distributed.ddp_barrier()
        distributed.run_on_main(store.finish)

    def begin(self, folder, manifest, batch):
        """Makes the store, unless it is there, with a first batch in it."""
        if self.find(folder) is not None:
            return
        (first,) = self.encode([batch])
        recordings = {n: r.get("recording", n) for n, r in self.rows.items()}
        places = {
            layer: (self.encoder.frame_geometry(layer), self.counts(layer))
            for layer in self.layers
        }
        sample = {
            name: np.concatenate([values[name] for _, values in first])
            for name in self.arrays
        }
        store = ActivationStore.create(
            folder, self.made_of, manifest, recordings, places, sample
        )
        for utterance in first:
            store.write(*utterance)
        store.flush()

    def counts(self, layer):
        """Returns the rows of each utterance."""
        if self.made_of["rows"] == MEAN:
            return [1] * len(self.samples)
        if self.made_of["rows"] == LABELS:
            return [num_labels(n) for n in self.samples]
        return [self.encoder.output_lengths(n, layer) for n in self.samples]

    @torch.no_grad()
    def encode(self, batches):
        """Yields, for each batch, pairs of a position and its arrays' rows."""
        loader = make_dataloader(self.dataset, batch_sampler=batches)
        bar = tqdm(loader, "encoding", disable=len(batches) < 2, unit="batch")
        for positions, batch in zip(batches, bar, strict=True):
            samples = [self.samples[position] for position in positions]
            latents = self.encoder(
                batch.sig.data.to(self.device),
                torch.tensor(samples, device=self.device),
                self.layers,
                sample=False,
            )
            rows = {
                name: self.select(name, latents[layer_of(name)], samples)
                for name in self.arrays
            }
            yield [
                (position, {name: x[row] for name, x in rows.items()})
                for row, position in enumerate(positions)
            ]

    def select(self, name, latent, samples):
        """Returns the rows of each utterance of a batch, (rows, channels)."""
        rows, alignment = self.made_of["rows"], self.made_of["alignment"]
        x = latent.log_var if name.endswith(LOG_VAR) else latent.mean
        if rows == MEAN:
            return masked_mean(x, latent.lengths)[:, None].cpu().numpy()
        geometry, selected = self.encoder.frame_geometry(layer_of(name)), []
        for row, frames in enumerate(latent.lengths.tolist()):
            at = torch.arange(frames)
            if rows == LABELS:
                count = num_labels(samples[row])
                at = frames_of_labels(count, *geometry, frames, alignment)
            selected.append(x[row, at.to(x.device)].cpu().numpy())
        return selected
