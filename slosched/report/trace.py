"""A run as a Chrome trace: open the file in https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import gzip
import heapq
import json
from typing import Any

import numpy as np

from slosched.core.outcome import Run

Event = dict[str, Any]

ENGINE, WAITING = 1, 2
"""Process numbers of the two groups of tracks."""


def chrome_trace(run: Run) -> dict[str, Any]:
    """Trace events of a run in microseconds of the engine's clock.

    Running requests lie on tracks, one per slot, each a prefill and a decode slice; waiting requests are
    asynchronous slices from arrival to admission; waiting and running counts are counters. A request that
    was preempted keeps its slot and its slices here: outcomes do not record when.

    References
    ----------
    "Trace Event Format", Google, the format read by Perfetto.
    """
    slots = slot_of_each(run.outcomes.admitted_s, run.outcomes.finish_s)
    events = _names(run, int(slots.max(initial=-1)) + 1)
    for row in range(len(slots)):
        events += _request(run, row, int(slots[row]))
    log = run.log
    for when, waiting, running in zip(
        log.depth_time_s.tolist(), log.depth_waiting.tolist(), log.depth_running.tolist(), strict=True
    ):
        counts = {"waiting": waiting, "running": running}
        events.append({"ph": "C", "pid": ENGINE, "name": "requests", "ts": _us(when), "args": counts})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def trace_bytes(run: Run, *, compress: bool) -> bytes:
    """The trace as a file's content; the same run gives the same bytes."""
    content = json.dumps(chrome_trace(run), separators=(",", ":")).encode()
    return gzip.compress(content, mtime=0) if compress else content


def slot_of_each(start_s: np.ndarray[Any, Any], end_s: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lowest free slot for each interval in order of its start; -1 where start or end is missing.

    Examples
    --------
    >>> slot_of_each(np.array([0.0, 1.0, 2.0]), np.array([1.5, 4.0, 3.0])).tolist()
    [0, 1, 0]
    """
    slots = np.full(len(start_s), -1, dtype=np.int64)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for row in np.argsort(start_s, kind="stable").tolist():
        if not (np.isfinite(start_s[row]) and np.isfinite(end_s[row])):
            continue
        while busy and busy[0][0] <= start_s[row]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        slot = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (float(end_s[row]), slot))
        slots[row] = slot
    return slots


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _names(run: Run, slots: int) -> list[Event]:
    titles = {ENGINE: f"{run.policy} on {run.engine}", WAITING: "waiting requests"}
    events: list[Event] = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": title}}
        for pid, title in titles.items()
    ]
    for slot in range(slots):
        name = {"name": f"slot {slot}"}
        events.append({"ph": "M", "pid": ENGINE, "tid": slot, "name": "thread_name", "args": name})
    return events


def _request(run: Run, row: int, slot: int) -> list[Event]:
    out, work = run.outcomes, run.outcomes.workload
    kind = work.classes[int(work.class_index[row])]
    name = work.request_ids[row] if work.request_ids else f"{kind} {row}"
    verdict = "met" if out.met[row] else "missed"
    arrival_s, admitted_s = float(out.arrival_s[row]), float(out.admitted_s[row])
    events: list[Event] = []
    if admitted_s > arrival_s:
        wait = {"cat": "waiting", "id": row, "pid": WAITING, "tid": 0, "name": name}
        events.append(wait | {"ph": "b", "ts": _us(arrival_s)})
        events.append(wait | {"ph": "e", "ts": _us(admitted_s)})
    if slot < 0:
        return events
    facts = {
        "class": kind,
        "slo": verdict,
        "prompt_tokens": int(work.prompt_tokens[row]),
        "output_tokens": int(work.output_tokens[row]),
        "preemptions": int(out.preemptions[row]),
    }
    first_s, finish_s = float(out.first_token_s[row]), float(out.finish_s[row])
    for phase, start, end in (("prefill", admitted_s, first_s), ("decode", first_s, finish_s)):
        events.append(
            {"ph": "X", "pid": ENGINE, "tid": slot, "cat": f"{phase},{verdict}", "name": f"{name} {phase}"}
            | {"ts": _us(start), "dur": _us(end) - _us(start), "args": facts}
        )
    return events
