"""Simulated annealing of an order on the model of continuous batching, compiled.

Metropolis acceptance on the scale of the objective (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983), with
geometric cooling. Both temperatures follow from the instance: they are shares of the typical loss of a move
(`typical_loss`), as White (ICCD 1984) proposes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.jit import njit
from slosched.planner import model as c

SAMPLED = 32
"""Moves tried to find the typical loss: its quartiles then lie within about a third of the true ones."""


@njit()
def _random(state: NDArray[np.uint64]) -> int:
    """The next of xorshift64*'s numbers, 63 bits; `state` is one non-zero number."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return int((x * np.uint64(2685821657736338717)) >> np.uint64(1))


@njit()
def _draw(order: Ints, state: NDArray[np.uint64]) -> tuple[int, int, bool]:
    """A move: two places at log-uniform distance, and whether they swap or the first goes to the second."""
    n = len(order)
    bits = _random(state)
    i = (bits >> 32) % n
    distance = max(1, int(math.exp(((bits >> 8) & 0xFFFF) / 65536.0 * math.log(n))))
    j = i - distance if bits & 1 else i + distance
    return i, min(n - 1, max(0, j)), bits & 6 == 0


@njit()
def _make(order: Ints, i: int, j: int, swaps: bool) -> None:
    """Make a move; the same with `i` and `j` exchanged undoes it."""
    job = order[i]
    if swaps:
        order[i], order[j] = order[j], job
        return
    step = 1 if j > i else -1
    for k in range(i, j, step):
        order[k] = order[k + step]
    order[j] = job


@njit()
def typical_loss(
    jobs: Floats, running: int, order: Ints, engine: Floats, aim: Floats, prefill_tokens: float,
    rng: NDArray[np.uint64], scratch: c.Scratch,
) -> float:  # fmt: skip
    """Median loss of the moves from `order` that lose; 0 where none does. Costs `SAMPLED` evaluations."""
    n = len(order)
    value = c.evaluate(jobs, running, order, n, engine, aim, prefill_tokens, scratch)
    losses = np.empty(SAMPLED)
    count = 0
    for _ in range(SAMPLED):
        i, j, swaps = _draw(order, rng)
        _make(order, i, j, swaps)
        loss = value - c.evaluate(jobs, running, order, n, engine, aim, prefill_tokens, scratch)
        _make(order, j, i, swaps)
        if loss > 0.0:
            losses[count] = loss
            count += 1
    return float(np.median(losses[:count])) if count > 0 else 0.0


@njit()
def anneal(
    jobs: Floats, running: int, order: Ints, best: Ints, engine: Floats, aim: Floats, prefill_tokens: float,
    moves: int, heat: tuple[float, float], rng: NDArray[np.uint64], scratch: c.Scratch,
) -> float:  # fmt: skip
    """Walk from `order`, which moves on, and leave the best order met in `best`; returns its value.

    Parameters
    ----------
    jobs, running, engine, aim, prefill_tokens, scratch
        As for `slosched.planner.model.evaluate`.
    order, best
        Waiting jobs in their order; `best` must hold an order, too, and is replaced by a better one only.
    moves
        Evaluations.
    heat
        Temperatures of the first and of the last move, in the objective's unit, at least 0.
    rng
        One non-zero 64-bit number, which moves on.
    """
    n = len(order)
    value = c.evaluate(jobs, running, order, n, engine, aim, prefill_tokens, scratch)
    top: float = c.evaluate(jobs, running, best, n, engine, aim, prefill_tokens, scratch)
    if value > top:
        top = value
        best[:] = order
    hot, cold = max(heat[0], 1e-300), max(heat[1], 1e-300)
    cooling = (cold / hot) ** (1.0 / max(1, moves - 1))
    temperature = hot
    for _ in range(moves):
        i, j, swaps = _draw(order, rng)
        chance = _random(rng) / 9.223372036854775807e18
        if i != j:
            _make(order, i, j, swaps)
            candidate = c.evaluate(jobs, running, order, n, engine, aim, prefill_tokens, scratch)
            if candidate >= value or chance < math.exp((candidate - value) / temperature):
                value = candidate
                if value > top:
                    top = value
                    best[:] = order
            else:
                _make(order, j, i, swaps)
        temperature *= cooling
    return top
