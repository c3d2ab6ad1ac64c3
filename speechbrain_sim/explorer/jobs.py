"""One queue with a bound, and one thread that works through it.

Of each client the newest job wins: older ones are superseded before they begin,
or between two of their steps.
"""

import threading
import time
from collections import deque
from concurrent.futures import Future

#: jobs that may wait
BOUND = 32
SUPERSEDED = "A newer request has replaced this one."


class Refused(ValueError):
    """A request that is not answered: the HTTP `status`, and a sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Job:
    """A function that is called with a `check`, which raises if it is stopped.

    Its result, or what it raises, is in `future`.

    Arguments
    ---------
    function, client : callable, str
        What to do; of whom a newer job replaces this one, None of nobody.
    """

    def __init__(self, function, client=None):
        self.function, self.client = function, client
        self.future, self._stopped = Future(), None
        self.added, self.milliseconds = time.perf_counter(), None

    def stop(self, reason):
        """Stops it, before it begins or at its next `check`: a `Refused`."""
        self._stopped = reason

    def check(self):
        """Raises why it was stopped, if it was."""
        if self._stopped:
            raise self._stopped

    def work(self):
        """Does it, and notes for how many milliseconds it waited and worked."""
        begun = time.perf_counter()
        try:
            self.check()
            made, error = self.function(check=self.check), None
        except Exception as raised:
            made, error = None, raised
        times = begun - self.added, time.perf_counter() - begun
        waited, worked = (round(1e3 * seconds, 1) for seconds in times)
        self.milliseconds = {"waited": waited, "worked": worked}
        if error is None:
            self.future.set_result(made)
        else:
            self.future.set_exception(error)


class Queue:
    """Jobs in the order in which they came, done by one thread.

    Arguments
    ---------
    bound : int
        How many may wait.

    Example
    -------
    >>> queue = Queue()
    >>> queue.add(lambda check: 6 * 7).future.result()
    42
    >>> queue.close()
    """

    def __init__(self, bound=BOUND):
        self.bound, self._waiting, self._current = bound, deque(), None
        self._changed, self._open = threading.Condition(), True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __len__(self):
        return len(self._waiting)

    def add(self, function, client=None):
        """Adds a job, and supersedes the client's others: returns the Job.

        A `Refused` (503) is raised if too many wait.
        """
        job = Job(function, client)
        with self._changed:
            if client is not None:
                for other in [self._current, *self._waiting]:
                    if other is not None and other.client == client:
                        self._drop(other, Refused(409, SUPERSEDED))
            if len(self._waiting) >= self.bound or not self._open:
                raise Refused(503, "The explorer is busy: try again soon.")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def drop(self, job):
        """Stops a job whose client has gone away."""
        with self._changed:
            self._drop(job, left())

    def _drop(self, job, reason):
        job.stop(reason)
        if job in self._waiting:
            self._waiting.remove(job)
            job.future.set_exception(reason)

    def close(self):
        """Refuses further jobs, stops the others, and ends the thread."""
        with self._changed:
            self._open = False
            for job in [self._current, *self._waiting]:
                if job is not None:
                    self._drop(job, Refused(503, "The explorer was stopped."))
            self._changed.notify()
        self._thread.join()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return
                self._current = self._waiting.popleft()
            self._current.work()
            with self._changed:
                self._current = None


def left():
    """Returns why a job ends whose client has gone away."""
    return Refused(499, "The client has gone away.")
