"""What one stage sends is what the next one gets, or an error names the rank."""

from collections import deque
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from speechbrain_sim.brains import transport
from speechbrain_sim.brains.transport import WINDOW, Chain, Here

WHEN = (1, 2, 5)


class Wire:
    """Stands for torch.distributed: what is sent lies in a queue."""

    def __init__(self):
        self.sent, self.waited = deque(), 0

    def isend(self, tensor, target, group):
        self.sent.append(tensor.clone())
        return self

    def wait(self):
        self.waited += 1

    def recv(self, tensor, source, group):
        if not self.sent:
            raise RuntimeError("[gloo/tcp] Connection closed by peer")
        tensor.copy_(self.sent.popleft())


@pytest.fixture
def wire(monkeypatch):
    wire = Wire()
    monkeypatch.setattr(transport, "dist", wire)
    return wire


def make_chain(rank, stages=(("a",), ("b", "c")), replicas=1):
    """A rank of a mesh, without a group of processes."""
    chain = Chain.__new__(Chain)
    chain.stages, chain.replicas, chain.rank = stages, replicas, rank
    chain.stage, chain.replica = divmod(rank, replicas)
    chain.first, chain.last = rank < replicas, chain.stage == len(stages) - 1
    chain.timeout, chain.edges = timedelta(seconds=3), dict.fromkeys(range(9))
    chain.queue, chain.bytes, chain.waited = deque(), 0, 0.0
    chain.when, chain.everyone = (1, 0, 0), None
    return chain


@pytest.mark.parametrize("dtype", transport.DTYPES)
@pytest.mark.parametrize("turned", [False, True])
def test_bits_and_memory_order_arrive(wire, dtype, turned):
    x = torch.randn(2, 3, 5).to(dtype)
    x = x.transpose(1, 2) if turned else x
    lengths, loss = torch.tensor([3, 2]), torch.tensor(0.1) / 3
    below, above = make_chain(0), make_chain(1)
    below.send(x, lengths, loss, WHEN)
    got, frames = above.receive(None, WHEN)
    assert got.dtype == x.dtype and torch.equal(got, x)
    assert got.stride() == x.stride() and torch.equal(frames, lengths)
    assert above.below == loss
    assert below.bytes == 8 * (transport.HEADER + 2) + x.nbytes


def test_a_stage_is_two_steps_ahead_at_most(wire):
    chain, x = make_chain(0), torch.zeros(1, 1, 1)
    for step in range(4):
        chain.send(x, torch.tensor([1]), torch.tensor(0.0), (1, 1, step))
        assert len(chain.queue) == min(step + 1, WINDOW)
    assert wire.waited == 3 * 2  # header, lengths and latents of two steps


def test_the_last_stage_sends_nothing(wire):
    make_chain(1).send(torch.zeros(1, 1, 1), None, None, WHEN)
    assert not wire.sent


def test_another_step_is_refused(wire):
    args = torch.zeros(1, 1, 1), torch.tensor([1]), torch.tensor(0.0)
    make_chain(0).send(*args, (1, 2, 6))
    with pytest.raises(RuntimeError, match=r"epoch 2, step 5.*epoch 2, step 6"):
        make_chain(1).receive(None, WHEN)


def test_a_lost_rank_is_named(wire):
    said = (
        r"Rank 3 \(stage 2: b, c\) stopped at epoch 2, validation step 5: "
        r"Rank 1 \(stage 1: a\) is gone, or did not answer for 3 s"
    )
    with pytest.raises(ConnectionError, match=said):
        make_chain(3, replicas=2).receive(None, (0, 2, 5))


def test_other_errors_keep_their_message(wire):
    with pytest.raises(RuntimeError, match="^shape"):
        with make_chain(0).naming(None, WHEN):
            raise RuntimeError("shape")


@pytest.mark.parametrize("wait", ["share", "collect", "finish"])
def test_a_rank_lost_between_steps_is_noticed(monkeypatch, wait):
    def lost(*_):
        raise RuntimeError("Connection closed by peer")

    names = "broadcast_object_list", "gather_object", "barrier"
    monkeypatch.setattr(
        transport, "dist", SimpleNamespace(**dict.fromkeys(names, lost))
    )
    chain = make_chain(0)
    chain.when = 1, 4, 7
    arguments = () if wait == "finish" else (None,)
    said = r"^Rank 0 .* stopped at epoch 4, step 7: another rank is gone"
    with pytest.raises(ConnectionError, match=said):
        getattr(chain, wait)(*arguments)


def test_the_first_stage_reads_the_batch():
    wavs = torch.randn(2, 8), torch.tensor([1.0, 0.5])
    x, lengths = Here().receive(SimpleNamespace(sig=wavs), WHEN)
    assert torch.equal(x[..., 0], wavs[0]) and lengths.tolist() == [8, 4]
    again, _ = make_chain(0).receive(SimpleNamespace(sig=wavs), WHEN)
    assert torch.equal(again, x)
