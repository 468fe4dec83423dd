"""Tasks over cells in processes that share one object."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

from slosched.core.errors import InputError, MissingExtraError
from slosched.core.named import blame

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Done = TypeVar("Done")

Progress = Callable[[int, int], None]
"""Called with (done, all)."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a map; `results` holds what was done until then, by the place of the cell."""

    def __init__(self, results: dict[int, Any]) -> None:
        super().__init__("interrupted")
        self.results = results


class Workers(Generic[Shared]):
    """Processes that know one object and map tasks over cells; with one job, this process itself.

    Processes are spawned: forking is not safe with threads, and a progress bar is one. Close it by leaving
    its ``with`` block.

    Parameters
    ----------
    shared
        First argument of every task; picklable, sent to each process once.
    jobs
        Processes, at least 1.
    """

    def __init__(self, shared: Shared, jobs: int) -> None:
        self._shared = shared
        self._pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(jobs, spawn, initializer=_remember, initargs=(shared,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:  # Nobody waits for what is still running.
            for process in list(getattr(self._pool, "_processes", None) or {}).copy():
                self._pool._processes[process].terminate()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(
        self, task: Callable[[Shared, Item], Done], cells: Sequence[Item], progress: Progress | None = None
    ) -> list[Done]:
        """Results in the order of the cells.

        Raises
        ------
        Interrupted
            At Ctrl-C; it holds the results so far.
        """
        results: dict[int, Done] = {}
        try:
            for index, result in self.each(task, cells):
                results[index] = result
                if progress is not None:
                    progress(len(results), len(cells))
        except KeyboardInterrupt:
            raise Interrupted(results) from None
        return [results[i] for i in range(len(cells))]

    def each(self, task: Callable[[Shared, Item], Done], cells: Sequence[Item]) -> Iterator[tuple[int, Done]]:
        """Results as they come, each with the index of its cell."""
        if self._pool is None:
            for index, cell in enumerate(cells):
                yield index, task(self._shared, cell)
            return
        with _uninterrupted():
            futures = {self._pool.submit(_guarded, task, cell): i for i, cell in enumerate(cells)}
        for future in as_completed(futures):
            try:
                result, complaint = future.result()
            except BrokenProcessPool:
                raise OSError("a worker was ended from outside, perhaps for want of memory.") from None
            if complaint is not None:
                raise InputError(complaint)
            yield futures[future], result


class RayWorkers(Workers[Shared]):
    """The same on every machine of a Ray cluster, or on this one if no cluster is found; needs ``ray``.

    Parameters
    ----------
    shared
        First argument of every task; must mean the same on every machine (a path must exist there).
    jobs
        Ignored: Ray knows its cores.
    """

    def __init__(self, shared: Shared, jobs: int = 1) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "cluster") from None
        super().__init__(shared, 1)
        self._ray: Any = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def each(self, task: Callable[[Shared, Item], Done], cells: Sequence[Item]) -> Iterator[tuple[int, Done]]:
        """Results as they come, each with the index of its cell."""
        remote = self._ray.remote(_with_complaint)
        shared = self._ray.put(self._shared)
        index = {remote.remote(task, shared, cell): i for i, cell in enumerate(cells)}
        waiting = list(index)
        while waiting:
            (ready,), waiting = self._ray.wait(waiting)
            result, complaint = self._ray.get(ready)
            if complaint is not None:
                raise InputError(complaint)
            yield index[ready], result


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits, and never comes to processes started in here: not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_shared: Any = None
"""The object of a worker process."""


def _remember(shared: Any) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.


def _guarded(task: Callable[[Any, Any], Any], cell: Any) -> tuple[Any, str | None]:
    return _with_complaint(task, _shared, cell)


def _with_complaint(task: Callable[[Any, Any], Any], shared: Any, cell: Any) -> tuple[Any, str | None]:
    """A task's result, or the words of its `InputError`: not every exception survives pickling.

    A fault in somebody's own policy or router is one, too.
    """
    try:
        return task(shared, cell), None
    except InputError as error:
        return None, str(error)
    except Exception as error:
        if (words := blame(error)) is None:
            raise
        return None, words
