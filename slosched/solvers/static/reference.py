"""Plain Python evaluation of a plan of static batches: the truth that every kernel must agree with.

Source: Huang et al., arXiv 2504.14966, with batch-dependent execution and the total latency taken over all
requests, met or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import InputError
from slosched.core.result import Expected, Score
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem

Batched = tuple[Ints, Ints]
"""A plan of static batches: a sequence and the sizes of its batches."""

IntsLike = Sequence[int] | Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchedValue:
    """Score, weighted tardiness in seconds and the latencies expected of each request."""

    score: Score
    tardiness_s: float
    prediction: Expected

    def value(self, objective: Objective) -> float:
        """The objective's value; for goodput the evaluation must be of the reweighted problem."""
        if objective is Objective.G:
            return self.score.g
        return self.tardiness_s if objective is Objective.TARDINESS else self.score.weight


def check_plan(problem: StaticProblem, sequence: IntsLike, batches: IntsLike) -> tuple[Ints, Ints]:
    """Arrays of a plan, or `InputError` unless it is a permutation cut into batches of allowed size.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[10, 20], output_tokens=[5, 5], max_batch=1)
    >>> check_plan(p, [0, 1], [2])
    Traceback (most recent call last):
    slosched.core.errors.InputError: batches must be sizes from 1 to 1 that sum to 2, got [2].
    """
    order = np.asarray(sequence, dtype=np.int64).reshape(-1)
    sizes = np.asarray(batches, dtype=np.int64).reshape(-1)
    if not np.array_equal(np.sort(order), np.arange(problem.n)):
        raise InputError(f"sequence must be a permutation of 0..{problem.n - 1}, got {order.tolist()}.")
    if int(sizes.sum()) != problem.n or bool(np.any((sizes < 1) | (sizes > problem.max_batch))):
        domain = f"sizes from 1 to {problem.max_batch} that sum to {problem.n}"
        raise InputError(f"batches must be {domain}, got {sizes.tolist()}.")
    return order, sizes


def full_batches(n: int, max_batch: int) -> Ints:
    """Sizes of the batches of n requests, all full but the last.

    Examples
    --------
    >>> full_batches(5, 2).tolist()
    [2, 2, 1]
    """
    sizes = [max_batch] * (n // max_batch) + ([n % max_batch] if n % max_batch else [])
    return np.array(sizes, dtype=np.int64)


def evaluate(problem: StaticProblem, sequence: IntsLike, batches: IntsLike) -> BatchedValue:
    """Run a plan on paper.

    Parameters
    ----------
    problem
        The requests.
    sequence
        Requests in order of start, a permutation of 0..n-1.
    batches
        Sizes of consecutive batches along it.

    Returns
    -------
    BatchedValue
        Tardiness counts the seconds of start after the latest start plus, where the TPOT limit is broken, the
        seconds of decode beyond TPOT limit times output tokens.

    Raises
    ------
    InputError
        If it is not a plan for this problem.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[100, 100], output_tokens=[50, 50], e2e_s=[1.0, 1.5])
    >>> evaluate(p, [0, 1], [1, 1]).score.weight, evaluate(p, [0, 1], [1, 1]).prediction.met.tolist()
    (1.0, [True, False])
    """
    order, sizes = check_plan(problem, sequence, batches)
    n, cost = problem.n, problem.cost
    start_s, ttft_s, tpot_s, e2e_s = (np.zeros(n) for _ in range(4))
    met = np.zeros(n, dtype=np.bool_)
    weight = latency = tardiness = clock = 0.0
    position = 0
    for size in sizes.tolist():
        members = order[position : position + size].tolist()
        position += size
        longest = 0.0
        for i in members:
            run = float(problem.u[i] * size + problem.v[i])
            longest = max(longest, run)
            prompt, out, waited = problem.prompt_tokens[i], problem.output_tokens[i], problem.elapsed_s[i]
            decode = cost.decode_s(batch=size, prompt_tokens=prompt, output_tokens=out)
            start_s[i] = clock
            ttft_s[i] = waited + clock + cost.prefill_s(batch=size, tokens=prompt)
            tpot_s[i] = decode / out
            e2e_s[i] = waited + clock + run
            latest = float(min(problem.c[i] - problem.a[i] * size, problem.c2[i] - problem.a2[i] * size))
            met[i] = clock <= latest and size <= problem.bmax[i]
            weight += float(problem.weight[i]) if met[i] else 0.0
            latency += float(e2e_s[i])
            late = max(0.0, clock - latest)
            if size > problem.bmax[i]:
                late += max(0.0, decode - float(problem.tpot_s[i] * out))
            tardiness += float(problem.weight[i]) * late
        clock += longest
    prediction = Expected(start_s=start_s, ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s, met=met)
    return BatchedValue(score=Score(weight, latency), tardiness_s=tardiness, prediction=prediction)


def evaluate_fast(problem: StaticProblem, sequence: Ints, batches: Ints) -> BatchedValue:
    """The same as `evaluate` in numpy, rounding alike, without checking the plan."""
    size_at = np.repeat(batches, batches)
    u, v = problem.u[sequence], problem.v[sequence]
    run = u * size_at + v
    firsts = np.cumsum(batches) - batches
    ends = np.cumsum(np.maximum.reduceat(run, firsts)) if len(run) else np.empty(0)
    start = np.repeat(np.concatenate([[0.0], ends[:-1]]), batches) if len(run) else np.empty(0)
    latest = np.minimum(
        problem.c[sequence] - problem.a[sequence] * size_at,
        problem.c2[sequence] - problem.a2[sequence] * size_at,
    )
    fits = size_at <= problem.bmax[sequence]
    met = (start <= latest) & fits
    decode_u, decode_v = (term[sequence] for term in problem.decode_terms)
    decode, out, waited = (
        decode_u * size_at + decode_v,
        problem.output_tokens[sequence],
        problem.elapsed_s[sequence],
    )
    weight = problem.weight[sequence]
    excess = np.where(
        fits, 0.0, np.maximum(0.0, decode - np.where(fits, 0.0, problem.tpot_s[sequence] * out))
    )
    columns = []
    for column in (start, waited + start + (run - decode), decode / out, waited + start + run, met):
        by_request = np.empty(problem.n, dtype=column.dtype)
        by_request[sequence] = column
        columns.append(by_request)
    return BatchedValue(
        score=Score(float(weight[met].sum()), float((waited + start + run).sum())),
        tardiness_s=float((weight * (np.maximum(0.0, start - latest) + excess)).sum()),
        prediction=Expected(
            start_s=columns[0], ttft_s=columns[1], tpot_s=columns[2], e2e_s=columns[3], met=columns[4]
        ),
    )


def score_lists(
    records: Sequence[Sequence[float]],
    elapsed_total_s: float,
    sequence: Sequence[int],
    batches: Sequence[int],
) -> tuple[float, float]:
    """(weight, latency) of a plan from lists of (u, v, c, a, c2, a2, weight, bmax): nothing else is computed.

    The plain Python counterpart of one kernel evaluation, used as the yardstick of speed.
    """
    weight, latency, clock, position = 0.0, elapsed_total_s, 0.0, 0
    for size in batches:
        longest = 0.0
        for i in sequence[position : position + size]:
            u, v, c, a, c2, a2, w, bmax = records[i]
            run = u * size + v
            if run > longest:
                longest = run
            latency += clock + run
            if clock <= c - a * size and clock <= c2 - a2 * size and size <= bmax:
                weight += w
        position += size
        clock += longest
    return weight, latency
