"""Publishes, saves and logs from a thread of its own, whether or not the engine steps."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from slosched.integrations.vllm.metrics import Stats

logger = logging.getLogger("vllm.slosched")


@dataclass(slots=True)
class Job:
    """Something done every so many seconds, and once more at the end if `last`."""

    name: str
    every_s: float
    run: Callable[[], None]
    last: bool = True
    due_s: float = field(default=0.0)


class Publisher:
    """One thread that does several jobs, each of which fails for itself.

    Parameters
    ----------
    jobs
        What to do; a job that raises is counted under its name, and tried again when it is due.
    stats
        Where failures are counted; the first of each job is logged.
    """

    def __init__(self, jobs: list[Job], stats: Stats) -> None:
        self._jobs, self._stats = jobs, stats
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; nothing happens if there is nothing to do. Each job is first done after its interval."""
        now_s = time.monotonic()
        for job in self._jobs:
            job.due_s = now_s + job.every_s
        if self._jobs:
            self._thread = threading.Thread(target=self._loop, name="slosched-publish", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread, and do what is done last."""
        self._end.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)
        for job in self._jobs:
            if job.last:
                self._run(job)
        self._jobs = []

    def _loop(self) -> None:
        while True:
            now_s = time.monotonic()
            for job in self._jobs:
                if now_s >= job.due_s:
                    job.due_s = now_s + job.every_s
                    self._run(job)
            soonest = min((job.due_s for job in self._jobs), default=now_s + 1.0)
            if self._end.wait(max(0.005, soonest - time.monotonic())):
                return

    def _run(self, job: Job) -> None:
        for again in (True, True, False):
            try:
                job.run()
            except RuntimeError as error:
                # The engine's thread changed a dictionary while it was read: a moment later it has not.
                if again and "changed size" in str(error):
                    continue
                self._failed(job, error)
            except Exception as error:
                self._failed(job, error)
            return

    def _failed(self, job: Job, error: Exception) -> None:
        self._stats.failure(job.name, error, "to be tried again")


def of_rank(path: Path, rank: int) -> Path:
    """The file of a data-parallel rank: the first has the name itself.

    Examples
    --------
    >>> of_rank(Path("/run/m.json"), 0).name, of_rank(Path("/run/m.json"), 2).name
    ('m.json', 'm.rank2.json')
    """
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def write_whole(path: Path, text: str) -> None:
    """Write a file in one move: whoever reads it sees the old or the new text, even after a crash."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def rank_of(vllm_config: object) -> int:
    """Number of the data-parallel rank that an engine is; 0 without data parallelism."""
    parallel = getattr(vllm_config, "parallel_config", None)
    for name in ("data_parallel_index", "data_parallel_rank"):
        rank = getattr(parallel, name, None)
        if isinstance(rank, int) and not isinstance(rank, bool):
            return max(0, rank)
    return 0
