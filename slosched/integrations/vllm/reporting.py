"""What one engine publishes: metrics, a JSON file, its learned state, its outlook, a line in the log."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from slosched.core.errors import InputError
from slosched.integrations.vllm.prometheus import (
    SharedPage,
    StatsCollector,
    bind_address,
    on_shared_page,
    serve,
)
from slosched.integrations.vllm.published import folder_for, sweep, tell
from slosched.integrations.vllm.publishing import Job, Publisher, of_rank, write_whole

logger = logging.getLogger("vllm.slosched")

PAGE_EVERY_S = 2.0
"""Seconds between updates of the page that several processes share: well below any scraper's interval."""


class Reporting:
    """The publisher of one scheduler; every kind of publication fails for itself.

    Parameters
    ----------
    controller, scheduler
        Whose counts and queue lengths are published.
    rank
        Number of the data-parallel rank: it has a port and files of its own.
    """

    def __init__(self, controller: Any, scheduler: Any, rank: int) -> None:
        self._controller, self._scheduler, self.rank = controller, scheduler, rank
        self._server: Any = None
        config = controller.config
        jobs = [Job("log", config.metrics.log_every_s, self._log, last=False)]
        if config.metrics.json_file is not None:
            jobs.append(Job("metrics file", config.metrics.json_every_s, self._write_json))
        if config.state_file is not None:
            jobs.append(Job("state file", config.state_every_s, self._save))
        collector = StatsCollector(controller.stats, rank, self._count_queues)
        if on_shared_page():
            page = SharedPage(collector)
            jobs.append(Job("metrics page", PAGE_EVERY_S, page.publish))
        if config.metrics.port is not None:
            self._serve(collector, config.metrics.port + rank, bind_address(config.metrics.address))
        if config.admission.publish:
            self._open_folder(jobs)
        self._publisher = Publisher(jobs, controller.stats)

    def start(self) -> None:
        """Begin."""
        self._publisher.start()

    def close(self) -> None:
        """Publish for the last time and end."""
        self._ending = True
        self._publisher.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _serve(self, collector: StatsCollector, port: int, address: str) -> None:
        try:
            self._server = serve(collector, port, address)
            logger.info("slosched: metrics on %s port %d", address, port)
        except (InputError, ImportError) as error:
            self._controller.stats.failure("metrics port", error, "serving without it")

    def _open_folder(self, jobs: list[Job]) -> None:
        try:
            self._folder = folder_for(self._controller.config.admission.folder)
            sweep(self._folder)
        except (InputError, OSError) as error:
            self._controller.stats.failure("admission folder", error, "the front process refuses nobody")
            return
        self._ending, self._parent = False, os.getppid()
        jobs.append(Job("outlook", self._controller.config.admission.publish_every_ms / 1e3, self._tell))

    def _count_queues(self) -> None:
        stats, scheduler = self._controller.stats, self._scheduler
        stats.running, stats.waiting = len(scheduler.running), len(scheduler.waiting)

    def _write_json(self) -> None:
        self._count_queues()
        content = {
            "rank": self.rank, **self._controller.stats.as_dict(),
            "chance_stated_and_kept": self._controller.ledger.waits.calibration(),
        }  # fmt: skip
        write_whole(of_rank(self._controller.config.metrics.json_file, self.rank), json.dumps(content))

    def _save(self) -> None:
        self._controller.learned.save(of_rank(self._controller.config.state_file, self.rank))

    def _tell(self) -> None:
        tell(self._folder, self._parent, self.rank, self._controller.outlook(), ending=self._ending)

    def _log(self) -> None:
        self._count_queues()
        logger.info("%s", self._controller.stats.line())
