"""Where the requests of a study come from: a built-in generator, or real traces."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slosched.core.engine import Engine
from slosched.core.errors import InputError, require
from slosched.core.steptime import StepTimeModel
from slosched.workloads import (
    ClassSpec,
    Workload,
    fit_to_engine,
    generate,
    merge,
    relabel,
    resample,
    rescale,
    with_forecast,
    with_slos,
)
from slosched.workloads.builtin import DEFAULT_FORECAST, DEFAULT_SLOS, KINDS, room_for
from slosched.workloads.fetch import command
from slosched.workloads.fields import UNITS
from slosched.workloads.mixes import MIXES, mix
from slosched.workloads.readers import Said, read

DATA_VARIABLE = "SLOSCHED_DATA"
"""Environment variable that names a folder of public traces."""

FEWEST = 20
"""Requests a mix has at least, also at a crawling rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A built-in generator or mix; see `slosched.workloads.generate` and `slosched.workloads.mixes.mix`.

    Parameters
    ----------
    kind
        Name of the generator or mix.
    duration_s
        Seconds of traffic, whatever the rate.
    engine
        The engine: requests that cannot fit it are left out, and limits that are multiples of the unloaded
        latency are taken from it.
    forecast
        Forecast model, see `slosched.workloads.with_forecast`.
    data
        Folder of public traces that mixes replay; None for generated stand-ins.
    """

    kind: str = "mixed"
    duration_s: float = 300.0
    engine: Engine
    forecast: str = DEFAULT_FORECAST
    data: str | None = None

    def __post_init__(self) -> None:
        known = dict.fromkeys([*KINDS, "mixed", *MIXES])
        require(self.kind in known, "workload", f"one of {', '.join(known)}", self.kind)
        require(0 < self.duration_s < np.inf, "duration_s", "a finite number above 0", self.duration_s)

    def __call__(self, rate_rps: float | None, seed: int) -> Workload:
        """Traffic of this rate."""
        require(rate_rps is not None, "rate", "given, since the workload is generated", rate_rps)
        assert rate_rps is not None
        room_for(rate_rps, self.duration_s)
        if self.kind in MIXES:
            duration_s = max(self.duration_s, FEWEST / rate_rps)
            return _not_empty(
                mix(
                    self.kind,
                    rate_per_s=rate_rps,
                    duration_s=duration_s,
                    seed=seed,
                    data_dir=self.data,
                    model=self.engine.step_time,
                    limits=self.engine.limits,
                    forecast=self.forecast,
                )
            )
        made = generate(
            self.kind,
            rate_per_s=rate_rps,
            duration_s=self.duration_s,
            seed=seed,
            model=self.engine.step_time,
            forecast=self.forecast,
        )
        return _not_empty(fit_to_engine(made, self.engine.limits)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replayed:
    """A trace, as it is or with its clock stretched to a rate.

    At a rate each seed replays other minutes of it (a moving-block bootstrap), so that intervals over seeds
    speak about the traffic and not about this one hour. As it is, every seed is the same.

    Parameters
    ----------
    trace
        Requests with limits.
    requests
        Requests of one replay; all of the trace if it has no more.
    forecast
        Forecast model, see `slosched.workloads.with_forecast`; None keeps the forecasts of the trace.
    """

    trace: Workload
    requests: int = 2000
    forecast: str | None = DEFAULT_FORECAST

    def __post_init__(self) -> None:
        require(self.requests >= 1, "requests", "an integer of at least 1", self.requests)
        _not_empty(self.trace)

    def __call__(self, rate_rps: float | None, seed: int) -> Workload:
        """A replay at this rate; None replays the first requests at the times in the trace."""
        count = min(self.requests, len(self.trace))
        if rate_rps is None:
            first_s = float(self.trace.arrival_s[0])
            part = self.trace.rows(np.arange(count), arrival_s=self.trace.arrival_s[:count] - first_s)
            if count < len(self.trace):
                part = replace(part, source=f"{part.source} (first {count} of {len(self.trace)} requests)")
        else:
            part = rescale(resample(self.trace, count, seed=seed), rate_rps)
        return part if self.forecast is None else with_forecast(part, self.forecast, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """A trace to read.

    Parameters
    ----------
    path
        The file.
    slo_class
        Class that its requests form; None keeps the file's classes.
    time_unit
        Unit of times whose column does not say it, as for `slosched.workloads.read`.
    """

    path: Path
    slo_class: str | None = None
    time_unit: str | None = None

    @classmethod
    def of(cls, text: str) -> TraceFile:
        """The file that a text such as ``FILE``, ``FILE=CLASS`` or ``FILE=CLASS@ms`` means.

        Examples
        --------
        >>> trace = TraceFile.of("logs/today.jsonl=chat@ms")
        >>> str(trace.path), trace.slo_class, trace.time_unit
        ('logs/today.jsonl', 'chat', 'ms')
        """
        if Path(text).exists():
            return cls(path=Path(text))
        words, at, unit = text.rpartition("@")
        if not at or unit not in UNITS:
            words, unit = text, ""
        if Path(words).exists():
            return cls(path=Path(words), time_unit=unit or None)
        path, _, name = words.rpartition("=") if "=" in words else (words, "", "")
        return cls(path=Path(path), slo_class=name or None, time_unit=unit or None)


def trace_source(
    files: Sequence[TraceFile],
    *,
    engine: Engine,
    slos: Mapping[str, ClassSpec] | None = None,
    requests: int = 2000,
    forecast: str | None = None,
    said: Said | None = None,
) -> Replayed:
    """Replay one or several trace files, mixed by their own clocks.

    Parameters
    ----------
    files
        What to read.
    engine
        The engine; requests that cannot fit it are left out, and counted in the workload's `source`.
    slos
        Limits by class, over those built in for chat, code, batch, agentic and reasoning. A class without
        either keeps the limits in its file.
    requests
        As in `Replayed`.
    forecast
        Forecast model, see `slosched.workloads.with_forecast`; by default the predictions in the files, and
        the usual model where they have none.
    said
        Called with a sentence on what was recognised in each file.

    Raises
    ------
    InputError
        If a file is malformed, or no request of the result has a limit.
    """
    parts = [read(file.path, time_unit=file.time_unit, said=said) for file in files]
    named = [
        part if file.slo_class is None else relabel(part, file.slo_class)
        for part, file in zip(parts, files, strict=True)
    ]
    trace = named[0] if len(named) == 1 else merge(named, name=" + ".join(w.name for w in named))
    trace, _ = fit_to_engine(trace, engine.limits)
    predicted = bool(np.any(trace.atoms != trace.output_tokens[:, None]))
    model = forecast or (None if predicted else DEFAULT_FORECAST)
    return Replayed(trace=_promised(trace, engine.step_time, slos or {}), requests=requests, forecast=model)


def data_folder() -> str | None:
    """The folder that `SLOSCHED_DATA` names, if it does."""
    folder = os.environ.get(DATA_VARIABLE)
    ok = not folder or any((Path(folder) / "traces").glob("*"))
    require(ok, DATA_VARIABLE, f"a folder with traces in it, as `{command()}` makes", folder)
    return folder or None


LIMITS = ("ttft", "tpot", "e2e", "ttfat")
"""Kinds of limits that a trace's rows may have."""


def parse_slo(text: str) -> ClassSpec:
    """Limits from words such as ``ttft=1,tpot=0.05,e2e=30,weight=2``; ``ttft_x`` is a multiple.

    Examples
    --------
    >>> parse_slo("ttft=1,e2e_x=5").e2e_x
    5.0
    """
    known = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s", "ttfat": "ttfat_s"}
    known |= {name: name for name in ("ttft_x", "tpot_x", "e2e_x", "weight")}
    values: dict[str, float] = {}
    for word in text.split(","):
        name, _, value = word.partition("=")
        require(name.strip() in known, "slo", f"KIND=NUMBER with kinds {', '.join(known)}", word)
        try:
            values[known[name.strip()]] = float(value)
        except ValueError:
            raise InputError(f"slo must be KIND=NUMBER, got {word!r}.") from None
    return ClassSpec(**values)  # type: ignore[arg-type]


def _promised(trace: Workload, step_time: StepTimeModel, slos: Mapping[str, ClassSpec]) -> Workload:
    specs = dict(slos)
    for index, name in enumerate(trace.classes):
        rows = trace.class_index == index
        bare = all(np.isinf(getattr(trace, f"{kind}_s")[rows]).all() for kind in LIMITS)
        if bare and name in DEFAULT_SLOS and name not in specs:
            specs[name] = DEFAULT_SLOS[name]
    trace = with_slos(trace, specs, model=step_time)
    bounded = any(np.isfinite(getattr(trace, f"{kind}_s")).any() for kind in LIMITS)
    if not bounded:
        known, name = ", ".join(DEFAULT_SLOS), trace.classes[0]
        raise InputError(
            f"slo must be given for a class of the trace, or the class one of {known}, got "
            f"{', '.join(trace.classes)!r}. On the command line: --slo '{name}:ttft=1,tpot=0.05', or "
            "a class after the file, as in --trace FILE=chat."
        )
    return trace


def _not_empty(workload: Workload) -> Workload:
    require(len(workload) > 0, "workload", "one or more requests that fit the engine", 0)
    return workload
