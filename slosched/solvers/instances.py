"""A public format of queue instances: documented JSON, one schema for static and continuous batching.

Format (schema 1): one JSON object ``{"schema": 1, "instances": [...]}``; an instance has

- ``name``: unique in the file; ``kind``: "static" or "continuous";
- ``source``: free text or the parameters of the generator;
- ``max_batch`` and ``cost`` (the eight coefficients of `BatchCost`, seconds) for a static one;
- ``engine`` for a continuous one, an object of numbers: ``running`` (the first so many requests run, in the
  engine's order, the others wait, by arrival), ``max_num_seqs``, ``max_num_batched_tokens``, ``kv_blocks``,
  ``block_tokens``, and the coefficients of `StepTimeModel` by name;
- ``requests``: arrays of equal length ``prompt_tokens``, ``output_tokens`` (expected, of the whole answer),
  ``elapsed_s`` (since arrival), ``ttft_s``, ``tpot_s``, ``e2e_s`` (null: no limit) and ``weight``; for a
  continuous one also ``generated_tokens``, ``computed_tokens`` (in the KV cache) and ``first_token_s`` (on a
  clock that is at 0 now; null: none yet);
- ``best``: by objective name ("lex", "g", "goodput", "tardiness"; continuous: "lex", "goodput") an object
  with ``sequence`` (of the waiting requests, from 0, for a continuous one), ``batches`` (empty for a
  continuous one), ``weight``, ``latency_s``, ``value``, ``bound`` (null: unknown), ``optimal`` (proved or
  not) and ``by`` (who found it).

`slosched.solvers.library` checks files and holds what comes with the package.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError, require
from slosched.core.remaining import remaining_tokens
from slosched.core.result import Result, Status
from slosched.core.steptime import StepTimeModel
from slosched.solvers.continuous_problem import ContinuousProblem
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import BatchCost, StaticProblem

SCHEMA = 1
COLUMNS = ("prompt_tokens", "output_tokens", "elapsed_s", "ttft_s", "tpot_s", "e2e_s", "weight")
LIMITS = ("ttft_s", "tpot_s", "e2e_s")
PROGRESS = ("generated_tokens", "computed_tokens", "first_token_s")
"""Further columns of a continuous instance."""
ENGINE = ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_tokens")
STEP_TIME = tuple(field.name for field in dataclasses.fields(StepTimeModel))
KINDS = {
    "static": (COLUMNS, tuple(goal.value for goal in Objective)),
    "continuous": ((*COLUMNS, *PROGRESS), ("lex", "goodput")),
}
"""Columns and objectives by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """A plan stored with an instance and what is claimed of it."""

    sequence: tuple[int, ...]
    batches: tuple[int, ...]
    weight: float
    latency_s: float
    value: float
    bound: float | None = None
    optimal: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance: its requests by column, and the best plans known by objective name."""

    name: str
    kind: str
    source: Any
    requests: dict[str, tuple[float, ...]]
    max_batch: int = 1
    cost: BatchCost = field(default_factory=BatchCost)
    engine: dict[str, float] = field(default_factory=dict)
    best: dict[str, Best] = field(default_factory=dict)

    def problem(self) -> StaticProblem:
        """The static problem; `InputError` for a continuous instance."""
        require(self.kind == "static", f"{self.name}: kind", "static", self.kind)
        return StaticProblem.build(**self.requests, max_batch=self.max_batch, cost=self.cost)

    def continuous(self) -> ContinuousProblem:
        """The continuous problem; `InputError` for a static instance."""
        require(self.kind == "continuous", f"{self.name}: kind", "continuous", self.kind)
        keys = ("running", *ENGINE, *STEP_TIME)
        got = sorted(self.engine)
        require(got == sorted(keys), f"{self.name}: engine", f"an object of {', '.join(keys)}", got)
        whole = {name: int(self.engine[name]) for name in ("running", *ENGINE, "knee_tokens")}
        uneven = [name for name, value in whole.items() if value != self.engine[name]]
        require(not uneven, f"{self.name}: engine", "whole counts", uneven)
        return ContinuousProblem.build(
            **self.requests,
            running=whole["running"],
            engine=Engine(
                name=self.name,
                limits=EngineLimits(**{name: whole[name] for name in ENGINE}),  # type: ignore[arg-type]
                step_time=StepTimeModel(
                    **{name: whole.get(name, self.engine[name]) for name in STEP_TIME}  # type: ignore[arg-type]
                ),
            ),
        )

    @classmethod
    def of(cls, problem: StaticProblem, name: str, source: object = "") -> Instance:
        """A static instance without stored plans."""
        requests = {column: tuple(getattr(problem, column).tolist()) for column in COLUMNS}
        return cls(
            name=name,
            kind="static",
            source=source,
            requests=requests,
            max_batch=problem.max_batch,
            cost=problem.cost,
        )

    @classmethod
    def of_continuous(cls, problem: ContinuousProblem, name: str, source: object = "") -> Instance:
        """A continuous instance without stored plans; forecasts become their expectation.

        Raises
        ------
        InputError
            If a prefix cache or a prefill limit is part of the problem: the format has neither.
        """
        snapshot = problem.snapshot
        table, rows = snapshot.table, np.concatenate([snapshot.running, snapshot.waiting])
        cached = table.cached_tokens[snapshot.waiting]
        require(not np.any(cached), "cached_tokens", "0 for all waiting requests", cached)
        require(problem.prefill_tokens == math.inf, "prefill_tokens", "infinite", problem.prefill_tokens)
        expected = table.generated_tokens[rows] + remaining_tokens(table.atoms, rows, table.generated_tokens)
        columns = {
            "prompt_tokens": table.prompt_tokens[rows],
            "output_tokens": np.maximum(table.generated_tokens[rows] + 1, expected.round()),
            "elapsed_s": np.maximum(0.0, snapshot.now_s - table.arrival_s[rows]).round(6),
            "ttft_s": table.ttft_s[rows].round(6),
            "tpot_s": table.tpot_s[rows].round(6),
            "e2e_s": table.e2e_s[rows].round(6),
            "weight": table.weight[rows],
            "generated_tokens": table.generated_tokens[rows],
            "computed_tokens": table.computed_tokens[rows],
            "first_token_s": (table.first_token_s[rows] - snapshot.now_s).round(6),
        }
        engine = {name: float(getattr(snapshot.limits, name)) for name in ENGINE}
        engine |= {name: float(getattr(snapshot.step_time, name)) for name in STEP_TIME}
        return cls(
            name=name,
            kind="continuous",
            source=source,
            requests={column: tuple(values.astype(float).tolist()) for column, values in columns.items()},
            engine={"running": float(problem.running), **engine},
        )

    def with_best(self, objective: str | Objective, result: Result) -> Instance:
        """The same instance with the plan of a result stored for an objective."""
        goal = Objective.named(objective)
        best = Best(
            sequence=tuple(int(i) for i in result.sequence),
            batches=tuple(int(b) for b in result.batches),
            weight=result.score.weight,
            latency_s=result.score.latency_s,
            value=result.objective,
            bound=result.bound,
            optimal=result.status is Status.OPTIMAL,
            by=result.solver,
        )
        return dataclasses.replace(self, best={**self.best, goal.value: best})


def write(path: str | Path, instances: Sequence[Instance]) -> None:
    """Write instances to a JSON file, one per line, in the order given."""
    lines = []
    for instance in instances:
        entry = dataclasses.asdict(instance)
        entry["requests"] = {
            column: [_plain(value) for value in values] for column, values in instance.requests.items()
        }
        if instance.kind == "static":
            entry.pop("engine")
        else:
            entry.pop("cost")
            entry.pop("max_batch")
            entry["engine"] = {name: _plain(value) for name, value in instance.engine.items()}
        lines.append(json.dumps(entry, separators=(",", ":"), allow_nan=False))
    body = ",\n".join(lines)
    Path(path).write_text(f'{{"schema":{SCHEMA},"instances":[\n{body}\n]}}\n', encoding="utf-8")


def _plain(value: float) -> float | int | None:
    """A whole number without its point, and null for what is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def read(path: str | Path) -> list[Instance]:
    """Read a file of instances.

    Raises
    ------
    InputError
        If the file is not JSON of this schema; the message names file, instance, field and value.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}.") from None
    ok = isinstance(data, dict) and data.get("schema") == SCHEMA
    require(ok, f"{path}: schema", f"{SCHEMA}", data.get("schema") if isinstance(data, dict) else data)
    entries = data.get("instances")
    require(isinstance(entries, list), f"{path}: instances", "a list", entries)
    out: list[Instance] = []
    names: dict[str, int] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        require(isinstance(name, str) and name not in names, f"{path}: name", "a new string", name)
        names[str(name)] = len(out)
        out.append(_read_instance(entry, f"{path}, {name}"))
    return out


def _read_instance(entry: dict[str, Any], where: str) -> Instance:
    kind = entry.get("kind")
    require(kind in KINDS, f"{where}: kind", "static or continuous", kind)
    names, goals = KINDS[str(kind)]
    columns = entry.get("requests")
    if not isinstance(columns, dict) or sorted(columns) != sorted(names):
        got = sorted(columns) if isinstance(columns, dict) else columns
        raise InputError(
            f"{where}: requests must be an object of the columns {', '.join(names)}, got {got!r}."
        )
    requests = {column: _read_column(columns[column], column, where) for column in names}
    engine = entry.get("engine", {})
    ok = isinstance(engine, dict) and all(_is_number(value) for value in engine.values())
    require(ok, f"{where}: engine", "an object of numbers", engine)
    best = {}
    stored = entry.get("best", {})
    require(isinstance(stored, dict), f"{where}: best", "an object", stored)
    try:
        for goal, plan in stored.items():
            require(goal in goals, f"{where}: objective", f"one of {', '.join(goals)}", goal)
            best[goal] = Best(
                **{**plan, "sequence": tuple(plan["sequence"]), "batches": tuple(plan["batches"])}
            )
        instance = Instance(
            name=entry["name"],
            kind=str(kind),
            source=entry.get("source", ""),
            requests=requests,
            max_batch=entry.get("max_batch", 1),
            cost=BatchCost(**entry["cost"]) if kind == "static" else BatchCost(),
            engine={name: float(value) for name, value in engine.items()},
            best=best,
        )
        instance.problem() if kind == "static" else instance.continuous()
    except KeyError as error:
        raise InputError(f"{where}: {error.args[0]} is missing.") from None
    except InputError as error:
        words = str(error)
        raise InputError(words if words.startswith(where) else f"{where}: {words}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    return instance


def _read_column(values: object, column: str, where: str) -> tuple[float, ...]:
    require(isinstance(values, list), f"{where}: {column}", "a list", values)
    absent = {"first_token_s": math.nan} | dict.fromkeys(LIMITS, math.inf)
    out = []
    for value in values:  # type: ignore[attr-defined]
        if value is None and column in absent:
            out.append(absent[column])
            continue
        require(_is_number(value), f"{where}: {column}", "numbers", value)
        out.append(float(value))
    return tuple(out)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
