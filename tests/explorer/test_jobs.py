"""One queue: newest wins, a bound, and a thread that survives."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from speechbrain_sim.explorer.jobs import Queue, Refused
from speechbrain_sim.explorer.server import wait_for


@pytest.fixture
def queue():
    queue = Queue(bound=4)
    yield queue
    queue.close()


@pytest.fixture
def busy(queue):
    """Keeps the thread at work until it is set."""
    begun, end = threading.Event(), threading.Event()

    def work(check):
        begun.set()
        assert end.wait(30)

    queue.add(work)
    assert begun.wait(30)
    yield end
    end.set()


def status(job):
    error = job.future.exception(30)
    return error and error.status


def test_of_fifty_requests_of_a_client_the_newest_is_worked_on(queue, busy):
    worked = []
    jobs = [
        queue.add(lambda check, i=i: worked.append(i), "page")
        for i in range(50)
    ]
    other = queue.add(lambda check: worked.append("other"), "other page")
    assert len(queue) == 2
    busy.set()
    assert [status(job) for job in jobs] == [409] * 49 + [None]
    assert status(other) is None
    assert worked == [49, "other"]


def test_a_superseded_job_ends_at_its_next_step(queue):
    begun, go_on, steps = threading.Event(), threading.Event(), []

    def work(check):
        begun.set()
        assert go_on.wait(30)
        check()
        steps.append("second")

    first = queue.add(work, "page")
    assert begun.wait(30)
    newer = queue.add(lambda check: "newer", "page")
    go_on.set()
    assert status(first) == 409 and newer.future.result(30) == "newer"
    assert not steps


def test_a_full_queue_is_busy_and_a_newer_request_replaces_in_it(queue, busy):
    jobs = [queue.add(lambda check: None, f"page {i}") for i in range(4)]
    with pytest.raises(Refused, match="busy") as refused:
        queue.add(lambda check: None, "page 4")
    assert refused.value.status == 503
    newer = queue.add(lambda check: None, "page 1")  # in its own place
    busy.set()
    assert [status(j) for j in [*jobs, newer]] == [None, 409, None, None, None]


def test_a_dropped_job_is_not_worked_on(queue, busy):
    worked = []
    job = queue.add(lambda check: worked.append(1))
    queue.drop(job)
    busy.set()
    queue.add(lambda check: None).future.result(30)
    assert not worked and status(job) == 499


def test_the_thread_survives_errors_and_ends_with_the_queue():
    queue = Queue()
    failed = queue.add(lambda check: 1 / 0)
    assert isinstance(failed.future.exception(30), ZeroDivisionError)
    job = queue.add(lambda check: 2)
    assert job.future.result(30) == 2
    waited, worked = job.milliseconds.values()
    assert waited >= 0 and worked >= 0
    queue.close()
    assert not queue._thread.is_alive()
    with pytest.raises(Refused):
        queue.add(lambda check: 2)


@pytest.mark.parametrize("gone", [False, True])
def test_a_request_that_is_cancelled_leaves_the_thread(queue, gone):
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def work(check):
        begun.set()
        assert go_on.wait(30)
        try:
            check()
        except Refused as error:
            seen.append(error.status)
            raise

    async def receive():
        while not (gone and begun.is_set()):
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def cancel():
        request = SimpleNamespace(receive=receive)
        task = asyncio.ensure_future(wait_for(queue, request, work))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # it is dropped, where the client has gone
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(cancel())
    go_on.set()
    assert queue.add(lambda check: 3).future.result(30) == 3 and seen == [499]
