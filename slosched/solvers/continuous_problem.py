"""A queue on an engine that batches continuously, as a problem to be solved: what to admit in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import DEFAULT_ENGINE, Engine
from slosched.core.errors import InputError, require
from slosched.core.result import Expected, Score
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable
from slosched.planner import model as c

HARD = 1e-9
"""Half-widths of margins that count as none."""

LATENCY_SHARE = 1e-3
"""What the total latency of the queue in order of arrival is worth in a lexicographic search, as a share of
the smallest positive weight: too little to ever outweigh a request."""

SLACK_S = 1e-6
"""What rounding may cost a bound."""

OBJECTIVES = ("soft", "lex", "goodput")
"""Objectives of this model: the softened one that `slosched` plans by; most weight expected to meet its
limits, then least total latency; the same with weights times expected output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrderValue:
    """What an order is worth: value of the objective, weight and latency, and each waiting request's fate.

    The score takes running and waiting requests together: an order helps or harms both. Its weight is
    expected over the forecasts' atoms, without margins.
    """

    value: float
    score: Score
    prediction: Expected


@dataclass(frozen=True, kw_only=True, eq=False)
class ContinuousProblem:
    """A snapshot whose waiting requests are to be ordered; request i is row ``snapshot.waiting[i]``.

    Parameters
    ----------
    snapshot
        The engine: who runs, who waits, slots, KV cache and step time.
    prefill_tokens
        Most prompt tokens per step, at least 1; infinity for what the token budget leaves.

    Raises
    ------
    InputError
        If two waiting requests have the same name, or a value is off its domain.

    Examples
    --------
    >>> p = ContinuousProblem.build(prompt_tokens=[100, 200], output_tokens=[50, 20], e2e_s=[3.0, 1.0])
    >>> p.n, p.evaluate([1, 0], "lex").score.weight
    (2, 2.0)
    """

    snapshot: Snapshot
    prefill_tokens: float = math.inf

    def __post_init__(self) -> None:
        require(isinstance(self.snapshot, Snapshot), "snapshot", "a Snapshot", self.snapshot)
        require(self.prefill_tokens >= 1, "prefill_tokens", "at least 1", self.prefill_tokens)
        names = [self.snapshot.table.request_ids[row] for row in self.snapshot.waiting.tolist()]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"request_id must be unique, got {twice!r} twice.")

    @classmethod
    def build(
        cls,
        *,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        elapsed_s: ArrayLike = 0.0,
        ttft_s: ArrayLike = math.inf,
        tpot_s: ArrayLike = math.inf,
        e2e_s: ArrayLike = math.inf,
        weight: ArrayLike = 1.0,
        running: int = 0,
        generated_tokens: ArrayLike = 0,
        computed_tokens: ArrayLike = 0,
        first_token_s: ArrayLike = math.nan,
        engine: Engine = DEFAULT_ENGINE,
    ) -> ContinuousProblem:
        """A problem from columns over requests, the first `running` of them running; the clock is at 0.

        Parameters
        ----------
        prompt_tokens
            Shape (n,), whole, at least 1; all others alike, or scalars for all.
        output_tokens
            Expected lengths of the whole answers, at least 1, as point forecasts.
        elapsed_s
            Seconds since arrival, at least 0.
        ttft_s, tpot_s, e2e_s, weight
            Limits above 0, infinity for none; weights of at least 0.
        running
            How many of the requests run, 0 to n.
        generated_tokens, computed_tokens
            Output tokens so far and tokens in the KV cache, whole, at least 0.
        first_token_s
            Clock time of the first token, NaN before.
        engine
            By default as in `Snapshot.of`.
        """
        shape = np.shape(prompt_tokens)
        require(len(shape) == 1, "prompt_tokens", "one value per request", shape)
        n = shape[0]
        require(0 <= running <= n, "running", f"from 0 to {n}", running)
        limits = engine.limits
        table = RequestTable.all_in_use(n)
        table.request_ids = [str(i) for i in range(len(table.serial))]
        table.prompt_tokens[:n] = _column("prompt_tokens", prompt_tokens, n, 1, whole=True)
        table.generated_tokens[:n] = _column("generated_tokens", generated_tokens, n, 0, whole=True)
        table.computed_tokens[:n] = _column("computed_tokens", computed_tokens, n, 0, whole=True)
        table.atoms[:n] = _column("output_tokens", output_tokens, n, 1)[:, None]
        table.arrival_s[:n] = -_column("elapsed_s", elapsed_s, n, 0)
        table.weight[:n] = _column("weight", weight, n, 0)
        for name, values in (("ttft_s", ttft_s), ("tpot_s", tpot_s), ("e2e_s", e2e_s)):
            limit = np.broadcast_to(np.asarray(values, dtype=np.float64), (n,))
            require(bool(np.all(limit > 0)), name, "numbers above 0", limit[~(limit > 0)].tolist()[:1])
            getattr(table, name)[:n] = limit
        table.first_token_s[:n] = np.broadcast_to(np.asarray(first_token_s, dtype=np.float64), (n,))
        held = int((-(-table.computed_tokens[:running] // limits.block_tokens)).sum())
        require(held <= limits.kv_blocks, "computed_tokens", f"within {limits.kv_blocks} KV blocks", held)
        rows = np.arange(n, dtype=np.int64)
        snapshot = Snapshot(
            now_s=0.0,
            table=table,
            waiting=rows[running:],
            running=rows[:running],
            engine=engine,
            free_blocks=limits.kv_blocks - held,
        )
        return cls(snapshot=snapshot)

    @property
    def n(self) -> int:
        """Waiting requests."""
        return len(self.snapshot.waiting)

    @property
    def running(self) -> int:
        """Running requests: the first jobs."""
        return len(self.snapshot.running)

    @cached_property
    def jobs(self) -> Floats:
        """Running, then waiting requests as jobs of `slosched.planner.model`."""
        return c.jobs_of(self.snapshot)

    @cached_property
    def engine(self) -> Floats:
        """The engine's constants, see `slosched.planner.model.engine_of`."""
        return c.engine_of(self.snapshot)

    @cached_property
    def certain(self) -> bool:
        """Whether all forecasts are points, so that every request either meets its limits or does not."""
        last = self.jobs.shape[1] - 1
        first = self.jobs[:, c.ALIVE].astype(np.int64)
        lowest = np.take_along_axis(self.jobs, first[:, None], axis=1)[:, 0]
        left = self.jobs[:, c.LEFT]
        return bool(np.all((lowest == left) & (self.jobs[:, last] == left)))

    def jobs_for(self, objective: str) -> Floats:
        """The jobs with the weights that the objective counts."""
        if objective != "goodput":
            return self.jobs
        jobs = self.jobs.copy()
        jobs[:, c.WEIGHT] *= jobs[:, c.GENERATED] + jobs[:, c.LEFT]
        return jobs

    def aim_for(self, objective: str) -> Floats:
        """Margins and price of latency that make `continuous.evaluate` rank orders as the objective does.

        Raises
        ------
        InputError
            If it is not one of `OBJECTIVES`.
        """
        if objective in ("g", "tardiness"):
            raise InputError(
                f"objective must be one of {', '.join(OBJECTIVES)} in continuous batching, got "
                f"{objective!r}: that one is defined for static batches (StaticProblem.of(snapshot))."
            )
        require(objective in OBJECTIVES, "objective", f"one of {', '.join(OBJECTIVES)}", objective)
        aim = np.array(c.DEFAULT_AIM)
        if objective != "soft":
            weight = self.jobs_for(objective)[:, c.WEIGHT]
            least = float(weight[weight > 0].min(initial=math.inf))
            worth = LATENCY_SHARE * (least if math.isfinite(least) else 1.0)
            aim[:] = 0.0
            aim[[c.SOFT_S, c.SOFT_TPOT]] = HARD
            aim[c.LATENCY] = worth / max(self._arrival_latency_s, 1e-9)
        return aim

    @cached_property
    def _arrival_latency_s(self) -> float:
        """Total latency in order of arrival."""
        return self._run(np.arange(self.n), self.jobs, np.array(c.DEFAULT_AIM))[2]

    def _run(self, sequence: Ints, jobs: Floats, aim: Floats) -> tuple[float, c.Scratch, float]:
        """Value, times and total latency of an order."""
        scratch = c.scratch_for(jobs)
        order = np.asarray(sequence, dtype=np.int64) + self.running
        value = c.evaluate(
            jobs, self.running, order, len(order), self.engine, aim, self.prefill_tokens, scratch
        )
        return value, scratch, float((scratch.finish_s - jobs[:, c.ARRIVAL]).sum())

    def evaluate(self, sequence: ArrayLike, objective: str = "soft") -> OrderValue:
        """What an order of the waiting requests leads to.

        Parameters
        ----------
        sequence
            A permutation of 0..n-1.
        objective
            One of `OBJECTIVES`.

        Raises
        ------
        InputError
            If it is not a permutation, or there is no such objective.
        """
        order = check_sequence(sequence, self.n)
        jobs = self.jobs_for(objective)
        value, scratch, latency_s = self._run(order, jobs, self.aim_for(objective))
        hard, now_s = self.aim_for("lex"), self.snapshot.now_s
        first, finish = scratch.first_s, scratch.finish_s
        chance = np.array([c.score(jobs, i, first[i], finish[i], now_s, hard) for i in range(len(jobs))])
        weight = float((jobs[:, c.WEIGHT] * chance).sum())
        arrival, of = jobs[:, c.ARRIVAL], slice(self.running, None)
        tokens = np.maximum(1.0, jobs[:, c.GENERATED] + jobs[:, c.LEFT] - 1.0)
        prediction = Expected(
            start_s=np.full(self.n, math.nan),
            ttft_s=(first - arrival)[of],
            tpot_s=((finish - first) / tokens)[of],
            e2e_s=(finish - arrival)[of],
            met=np.asarray(chance[of] >= 0.5),
        )
        return OrderValue(
            value=value if objective == "soft" else weight,
            score=Score(weight, latency_s),
            prediction=prediction,
        )

    @cached_property
    def alone(self) -> tuple[Floats, Floats]:
        """Seconds that each job holds its slot at least, and its latest start from now that is on time.

        As if it were alone in the engine: in the model company only delays. Running requests that decode
        have started already: theirs is 0 or minus infinity. Infinity where there is no limit.
        """
        e, jobs = self.engine, self.jobs
        todo, left, have = jobs[:, c.TODO], jobs[:, c.LEFT], jobs[:, c.HAVE]
        decodes = todo == 0
        room = max(1.0, min(float(e[c.BUDGET]), self.prefill_tokens))
        prefill = todo * (e[c.PREFILL_TOKEN] + e[c.ATTENTION] * (have + 0.5 * todo) + e[c.BASE] / room)
        tokens = np.where(decodes, left, left - 1.0)
        decode = tokens * (e[c.BASE] + e[c.SEQUENCE] + e[c.KV_TOKEN] * (have + todo + 0.5 * tokens))
        now_s, old = e[c.NOW], jobs[:, c.GENERATED] > 0
        kept = jobs[:, c.FIRST] <= jobs[:, c.FIRST_DUE]  # False where NaN
        before_first = np.where(old, np.where(kept, math.inf, -math.inf), jobs[:, c.FIRST_DUE] - now_s)
        latest = np.minimum(before_first - prefill - np.where(old, 0.0, 0.5 * e[c.BASE]),
                            jobs[:, c.E2E_DUE] - now_s - prefill - decode)  # fmt: skip
        # Of a new request nothing is known about the pace: its first token may come late.
        count = np.maximum(1.0, jobs[:, c.GENERATED] + left - 1.0)
        too_slow = old & (now_s + prefill + decode - jobs[:, c.FIRST] > jobs[:, c.TPOT] * count + SLACK_S)
        latest = np.where(too_slow, -math.inf, latest + SLACK_S)
        return prefill + decode, latest


def check_sequence(sequence: ArrayLike, n: int) -> Ints:
    """The sequence as an array, or `InputError` unless it is a permutation of 0..n-1."""
    order = np.asarray(sequence, dtype=np.int64).reshape(-1)
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise InputError(f"sequence must be a permutation of 0..{n - 1}, got {order.tolist()}.")
    return order


def _column(
    name: str, values: ArrayLike, n: int, least: float, *, whole: bool = False
) -> NDArray[np.float64]:
    """One finite value of at least `least` per request."""
    given = np.asarray(values, dtype=np.float64)
    require(given.shape in ((), (n,)), name, f"an array of shape ({n},)", given.shape)
    column = np.broadcast_to(given, (n,))
    inside = (column >= least) & (column < math.inf)
    if whole:
        inside &= column == np.floor(column)
    kind = "whole" if whole else "finite"
    require(bool(inside.all()), name, f"{kind} numbers of at least {least:g}", column[~inside].tolist()[:1])
    return column
