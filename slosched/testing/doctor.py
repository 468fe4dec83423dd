"""What slosched would do with the vLLM of this machine: ``slosched doctor``."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from slosched.core.engine import EngineLimits
from slosched.core.errors import InputError, install_words
from slosched.integrations.vllm.config import VARIABLE, Config, load_config
from slosched.testing.dry_plan import dry_plan

LIMIT_S = 60.0
"""Seconds for the dry plan: as long as a server waits for a policy's first plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report: ``status`` is ok, warning or error."""

    topic: str
    status: str
    text: str


@dataclass(slots=True)
class Report:
    """All findings, in order."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, topic: str, status: str, text: str) -> None:
        """Append a finding."""
        self.findings.append(Finding(topic=topic, status=status, text=text))

    @property
    def healthy(self) -> bool:
        """Whether nothing is an error."""
        return all(finding.status != "error" for finding in self.findings)


def examine(limit_s: float = LIMIT_S) -> Report:
    """Look at the configuration and at the installed vLLM, make one dry plan and a short trial run.

    Never raises for what it finds; every problem is a finding.

    Parameters
    ----------
    limit_s
        Seconds that the dry plan may take, the policy's imports and compiling included.
    """
    report = Report()
    config = _configuration(report)
    _kernels(report)
    if config is not None:
        _places(report, config)
        report.add("dry plan", *dry_plan(limit_s))
    if find_spec("vllm") is None:
        report.add("vLLM", "error", f"not installed in this environment: {install_words('vllm', 'vllm')}")
        return report
    _scheduler(report)
    return report


def _kernels(report: Report) -> None:
    """Where compiled code is kept."""
    import slosched.core.remaining as compiled
    from slosched.core.jit import cache_reason

    reason = cache_reason()
    folder = getattr(getattr(compiled._remaining_tokens, "stats", None), "cache_path", None)
    report.add(
        "compiled code", "warning" if reason else "ok",
        f"not kept, every process compiles anew, about 10 s: {reason}; set NUMBA_CACHE_DIR to a folder that "
        f"can be written" if reason else f"kept in {folder}",
    )  # fmt: skip


def _configuration(report: Report) -> Config | None:
    path = os.environ.get(VARIABLE)
    try:
        config = load_config()
    except InputError as error:
        report.add("configuration", "error", str(error))
        return None
    where = f"{VARIABLE}={path}" if path else f"{VARIABLE} is not set, all settings are default"
    classes = ", ".join(sorted(config.classes)) or "none"
    report.add(
        "configuration", "ok",
        f"{where}; policy {config.policy}, classes {classes}, default class {config.default_class}, "
        f"state file {config.state_file or 'none'}",
    )  # fmt: skip
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        report.add("metrics", "ok", "slosched:* appear on vLLM's own /metrics page")
    elif config.metrics.port or config.metrics.json_file:
        report.add("metrics", "ok", f"port {config.metrics.port}, JSON file {config.metrics.json_file}")
    else:
        report.add(
            "metrics", "warning",
            "in the log only: set PROMETHEUS_MULTIPROC_DIR, or metrics.port or metrics.json_file",
        )  # fmt: skip
    return config


def _places(report: Report, config: Config) -> None:
    """Whether what the configuration names can be written and listened on."""
    files = {
        "state_file": config.state_file, "step_log": config.step_log,
        "metrics.json_file": config.metrics.json_file, "admission.folder": config.admission.folder,
    }  # fmt: skip
    for name, path in files.items():
        if path is None:
            continue
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        if not os.access(there, os.W_OK) or (there != path.absolute() and not there.is_dir()):
            report.add(name, "warning", f"{path} cannot be written: {there} does not allow it")
    port = config.metrics.port
    if port is not None:
        try:
            with socket.create_server((config.metrics.address or "127.0.0.1", port)):
                pass
        except OSError as error:
            report.add(
                "metrics", "warning", f"port {port} cannot be listened on now: {error.strerror or error}"
            )


def _scheduler(report: Report) -> None:
    """Probe the scheduler, and run a hundred requests through it with every token checked."""
    try:
        import vllm

        report.add("vLLM", "ok", f"version {vllm.__version__}")
        from slosched.testing.chaos import run_chaos
        from slosched.testing.harness import make_scheduler
        from slosched.testing.trial_scheduler import trial_factory

        limits = EngineLimits(max_num_seqs=8, kv_blocks=64, max_model_len=512, max_num_batched_tokens=128)
        for asynchronous in (False, True):
            scheduler = make_scheduler(limits, asynchronous=asynchronous, factory=trial_factory)
            capability = scheduler.slosched.capability
            base = type(scheduler).__mro__[2]
            reasons = "; ".join(capability.reasons)
            report.add(
                "capability", "ok" if not reasons else "warning",
                f"{'async' if asynchronous else 'sync'} base {base.__module__}.{base.__name__}: "
                f"{capability.level}{': ' + reasons if reasons else ''}",
            )  # fmt: skip
        _states(report, base)
        _connector(report, scheduler)
        _prefix_cache(report, replace(limits, prefix_cache=True))
        for asynchronous, depth in ((False, 1), (True, 2)):
            done = run_chaos(50, 0, asynchronous=asynchronous, depth=depth, prefix_cache=True)
            report.add(
                "trial run", "ok",
                f"{'async' if asynchronous else 'sync'}, {depth} in flight: {done['requests']} requests, "
                f"{done['preemptions']} preemptions, every token right",
            )  # fmt: skip
    except Exception as error:
        report.add("vLLM", "error", f"{type(error).__name__}: {error}")


def _states(report: Report, base: type) -> None:
    """Whether this release's loop counts on anything that nobody has looked at."""
    from slosched.testing.schedule_reads import unknown

    new = unknown(base)
    report.add(
        "scheduler states", "warning" if new else "ok",
        f"schedule() reads states that slosched was not checked against: {', '.join(new)}" if new else
        "schedule() reads nothing that slosched was not checked against",
    )  # fmt: skip


def _connector(report: Report, scheduler: Any) -> None:
    """What a KV connector, which this trial does not have, would leave of the level."""
    from vllm.v1.core.sched.request_queue import RequestQueue

    from slosched.integrations.vllm.capability import FULL, probe

    own, scheduler.connector = getattr(scheduler, "connector", None), object()
    try:
        found = probe(scheduler, scheduler.vllm_config, RequestQueue)
    finally:
        scheduler.connector = own
    reasons = f": {'; '.join(found.reasons)}" if found.reasons else ""
    report.add(
        "KV connector", "ok" if found.level == FULL else "warning",
        f"none in this trial; with one the level would be {found.level}{reasons}; order-only on an instance "
        f"that decodes only",
    )  # fmt: skip


def _prefix_cache(report: Report, limits: EngineLimits) -> None:
    """Whether hits of waiting requests can be known."""
    from slosched.testing.harness import make_scheduler
    from slosched.testing.trial_scheduler import trial_factory

    seen = make_scheduler(limits, factory=trial_factory).slosched.peek.on
    report.add(
        "prefix cache", "ok" if seen else "warning",
        "hits of waiting requests are looked up" if seen else
        "this vLLM does not let hits of waiting requests be looked up; they count as unknown",
    )  # fmt: skip
