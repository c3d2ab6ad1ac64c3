"""Where a module's input comes from: this process, a store, or another rank.

Nothing flows back from a module to the one below it. A stage therefore works on
step t as soon as it has what the stage below sent before its own step t, and the
run has the bits of the serial one: no parameter is ever stale.
"""

import re
import struct
import time
from collections import deque
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from speechbrain_sim.encoders.base import Latent, absolute_lengths, to_device

#: steps that a stage may be ahead of the next one
WINDOW = 2
#: what a latent may be sent as; the header has the index
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
#: split, epoch, step, dtype, memory order, loss, batch, time, channel
HEADER = 9
#: how torch describes a rank that is gone or silent
LOST = "gloo|peer|[Tt]imed? ?out|Connection|Broken pipe|NCCL"


class Here:
    """All modules in this process: the bottom one reads the batch."""

    #: the loss of the modules that other ranks have, below these
    below = 0

    def receive(self, batch, when):
        """Returns the input of this process' bottom module, and its lengths.

        Arguments
        ---------
        batch : PaddedBatch
            Of a DataLoader, if this process loads data.
        when : tuple of int
            Split (1 for training), epoch and step.
        """
        wavs, wav_lens = batch.sig
        return wavs[..., None], absolute_lengths(wavs, wav_lens)

    def send(self, x, lengths, loss, when):
        """Hands on what the topmost module here computed, if anyone waits."""


class Frozen(Here):
    """Frozen modules below the one that learns: computed again, or stored.

    Arguments
    ---------
    encoder, layer : Encoder, str or None
        Whose layer the module reads; None: it reads the batch.
    device : str or torch.device
        Where.
    draw : callable
        (Latent, whether in training) -> what is handed on of it.
    """

    def __init__(self, encoder, layer, device, draw):
        self.encoder, self.layer = encoder, layer
        self.device, self.draw = device, draw

    @torch.no_grad()
    def receive(self, batch, when):
        """See `Here`; a batch of a store has a `latent`."""
        if hasattr(batch, "latent"):
            latent = self._stored(*batch.latent)
        else:
            x, lengths = super().receive(batch, when)
            if self.layer is None:
                return x, lengths
            latent = self._encode(to_device(x[..., 0], self.device), lengths)
        return self.draw(latent, bool(when[0])), latent.lengths

    def _stored(self, values, lengths):
        """Returns the Latent of stored means and log-variances."""
        lengths = absolute_lengths(values, lengths)
        width = self.encoder.channels_of(self.layer)
        mean, *log_var = to_device(values, self.device).split(width, dim=-1)
        return Latent(mean, *(log_var or [None]), mean, lengths)

    def _encode(self, wavs, lengths):
        """Encodes a batch: a Latent.

        On CPUs each utterance alone, as for a store: how many rows a product
        has may change the last bits of each.
        """
        encoder, layers = self.encoder, [self.layer]
        if wavs.device.type != "cpu":
            return encoder(wavs, lengths, layers, sample=False)[self.layer]
        rows = (wav[None, :n] for wav, n in zip(wavs, lengths, strict=True))
        latents = [encoder(row, None, layers, sample=False) for row in rows]
        return Latent.pad([latent[self.layer] for latent in latents])


class Chain(Here):
    """One rank of a mesh of stages and replicas, and its two neighbours.

    Rank = stage * replicas + replica. Latents travel through the memory of the
    host, by gloo, in their own precision and memory order.

    Arguments
    ---------
    stages : list of list of str
        The modules of each stage, bottom first.
    timeout : float
        Seconds after which a rank that does not answer ends the run.
    """

    def __init__(self, stages, timeout):
        self.stages, self.timeout = stages, timedelta(seconds=timeout)
        self.rank, world = dist.get_rank(), dist.get_world_size()
        self.replicas = world // len(stages)
        self.stage, self.replica = divmod(self.rank, self.replicas)
        self.first = self.stage == 0
        self.last = self.stage == len(stages) - 1
        self.queue, self.bytes, self.waited = deque(), 0, 0.0
        self.when = 1, 0, 0  # the last step that was begun
        # every rank makes every group, in one order
        self.everyone = dist.new_group(backend="gloo")  # patient: see `limit`
        self.edges = {}  # by the upper rank
        for upper in range(self.replicas, world):
            edge = upper - self.replicas, upper
            group = self._group(edge)
            if self.rank in edge:
                self.edges[upper] = group
        peers = torch.arange(world).view(-1, self.replicas).tolist()
        self.peers = [dist.new_group(ranks) for ranks in peers][self.stage]

    def _group(self, ranks):
        return dist.new_group([*ranks], timeout=self.timeout, backend="gloo")

    def limit(self):
        """From now on, no rank waits longer than the timeout for all others."""
        for group in None, self.everyone, self.peers:
            dist.distributed_c10d._set_pg_timeout(self.timeout, group)

    @property
    def modules(self):
        """The names of this stage's modules."""
        return self.stages[self.stage]

    def receive(self, batch, when):
        """See `Here`; on all but the first stage from the rank below."""
        self.when = tuple(when)
        if self.first:
            return super().receive(batch, when)
        source, group = self.rank - self.replicas, self.edges[self.rank]

        def take(*shape, dtype=torch.int64):
            tensor = torch.empty(shape, dtype=dtype)
            dist.recv(tensor, source, group)
            return tensor

        with self.waiting(source):
            header = take(HEADER).tolist()
            sent, (kind, turned, loss), shape = (
                tuple(header[i : i + 3]) for i in (0, 3, 6)
            )
            batch, time_, channel = shape
            lengths = take(batch)
            order = (batch, channel, time_) if turned else shape
            x = take(*order, dtype=DTYPES[kind])
        if sent != self.when:
            raise RuntimeError(
                f"{self.describe(self.rank)} is at {_moment(when)}, but got "
                f"what rank {source} computed at {_moment(sent)}: start all "
                f"ranks with the same settings."
            )
        self.below = torch.tensor(struct.unpack("d", struct.pack("q", loss))[0])
        return (x.transpose(1, 2) if turned else x), lengths

    def send(self, x, lengths, loss, when):
        """See `Here`; to the rank above, which may be two steps behind."""
        if self.last:
            return
        while len(self.queue) >= WINDOW:
            self._wait()
        # the order in memory decides which convolution runs, thus the bits
        turned = x.mT.is_contiguous() and not x.is_contiguous()
        (bits,) = struct.unpack("q", struct.pack("d", float(loss)))
        kind = DTYPES.index(x.dtype)
        header = torch.tensor([*when, kind, turned, bits, *x.shape])
        payload = (x.mT if turned else x.contiguous()).cpu()
        parts = header, lengths.cpu(), payload
        target = self.rank + self.replicas
        with self.waiting(target):
            group = self.edges[target]
            handles = [dist.isend(part, target, group) for part in parts]
        # gloo reads the tensors until `wait` returns
        self.queue.append((when, handles, parts))
        self.bytes += sum(part.nbytes for part in parts)

    def _wait(self):
        when, handles, _ = self.queue[0]
        with self.waiting(self.rank + self.replicas, when):
            for handle in handles:
                handle.wait()
        self.queue.popleft()

    def finish(self):
        """Waits until all that was sent is received, by everyone."""
        while self.queue:
            self._wait()
        self.barrier()

    def barrier(self):
        """Waits until all ranks are here."""
        with self.waiting(None):
            dist.barrier(self.everyone)

    def share(self, value):
        """Returns the value of rank 0, on every rank."""
        values = [value]
        with self.waiting(None):
            dist.broadcast_object_list(values, 0, self.everyone)
        return values[0]

    def collect(self, value):
        """Returns the values of all ranks, on rank 0."""
        world = len(self.stages) * self.replicas
        values = [None] * world if self.rank == 0 else None
        with self.waiting(None):
            dist.gather_object(value, values, 0, self.everyone)
        return values

    @contextmanager
    def waiting(self, peer, when=None):
        """Measures the wait for a rank; see `naming`."""
        begin = time.perf_counter()
        try:
            with self.naming(peer, when):
                yield
        finally:
            self.waited += time.perf_counter() - begin

    @contextmanager
    def naming(self, peer, when=None):
        """Names a rank if what is done here fails since it is gone or silent.

        `peer` is None if it is not known which one; `when` is a step, if not
        the present one.
        """
        try:
            yield
        except RuntimeError as error:
            if not re.search(LOST, str(error)):
                raise
            other = "another rank" if peer is None else self.describe(peer)
            seconds = f"{self.timeout.total_seconds():g}"
            raise ConnectionError(
                f"{self.describe(self.rank)} stopped at "
                f"{_moment(when or self.when)}: {other} is gone, or did not answer for {seconds} s (a slow "
                f"run needs a longer --stage_timeout). Start the run again, to "
                f"go on from its last checkpoint."
            ) from error

    def describe(self, rank):
        """Names a rank, its stage and its modules."""
        stage = rank // self.replicas
        names = ", ".join(self.stages[stage])
        return f"Rank {rank} (stage {stage + 1}: {names})"


def _moment(when):
    train, epoch, step = when
    return f"epoch {epoch}, {'' if train else 'validation '}step {step}"
