"""Seeded synthetic queues of static batches, each regenerated from its name."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from slosched.core.errors import InputError, require
from slosched.solvers.static.problem import BatchCost, StaticProblem


def generate(
    n: int,
    max_batch: int,
    *,
    load: float = 0.6,
    seed: int = 0,
    weighted: bool = False,
    cost: BatchCost | None = None,
) -> StaticProblem:
    """A seeded queue of an overloaded engine.

    Prompts ~ lognormal(4.8, 1.1) clipped to 4..2048 tokens, outputs ~ lognormal(5.0, 0.9) clipped to 4..1024.
    Half the requests have an e2e limit, the others TTFT and TPOT limits. Time waited ~ U(0, 2 s); a limit is
    the time waited + 1.1 times the request's own time in a full batch + load·makespan·U(0, 1), where makespan
    sums every max_batch-th execution time in descending order. 15 % of chat requests have a TPOT limit that
    holds in half-size batches only. Weights 1, or {1, 2, 4, 8} with probabilities .4, .3, .2, .1.

    Parameters
    ----------
    n, max_batch
        Requests and largest batch, at least 1.
    load
        Width of the limits, above 0: 0.4 is harsh, 1 mild.
    seed
        At least 0.
    weighted, cost
        See above; the cost defaults to `BatchCost()`.

    Examples
    --------
    >>> generate(20, 4, seed=3).n
    20
    """
    require(n >= 1, "n", "an integer of at least 1", n)
    require(0 < load < math.inf, "load", "a finite number above 0", load)
    rng = np.random.default_rng(seed)
    prompt = np.clip(rng.lognormal(4.8, 1.1, n), 4, 2048).round()
    output = np.clip(rng.lognormal(5.0, 0.9, n), 4, 1024).round()
    elapsed, slack = rng.uniform(0, 2, n), rng.random(n)
    end, tight = rng.random(n) < 0.5, rng.random(n) < 0.15
    weight = rng.choice([1.0, 2.0, 4.0, 8.0], n, p=[0.4, 0.3, 0.2, 0.1]) if weighted else np.ones(n)
    bare = StaticProblem.build(
        prompt_tokens=prompt, output_tokens=output, max_batch=max_batch, cost=cost or BatchCost()
    )
    own = bare.exec_s(max_batch)
    decode_u, decode_v = bare.decode_terms
    makespan = float(np.sort(own)[::-1][::max_batch].sum())
    room = elapsed + load * makespan * slack
    first_token = own - (decode_u * max_batch + decode_v)
    half = max(1, max_batch // 2)
    tpot = (
        np.where(tight, 1.0001 * (decode_u * half + decode_v), 1.5 * (decode_u * max_batch + decode_v))
        / output
    )
    return dataclasses.replace(  # whole microseconds keep the files small
        bare,
        elapsed_s=elapsed.round(6),
        e2e_s=np.where(end, room + 1.1 * own, math.inf).round(6),
        ttft_s=np.where(end, math.inf, room + 1.1 * first_token).round(6),
        tpot_s=np.where(end, math.inf, tpot).round(6),
        weight=weight,
    )


def named(name: str) -> StaticProblem:
    """The generated problem of a name such as "static-n50-b4-load0.6-w-s3" (w: weighted, u: not).

    Examples
    --------
    >>> named("static-n12-b2-load0.4-u-s7").max_batch
    2
    """
    parts = name.split("-")
    try:
        kind, n, batch, load, weights, seed = parts
        wrong = (kind, n[0], batch[0], load[:4], seed[0]) != ("static", "n", "b", "load", "s")
        if wrong or weights not in ("u", "w"):
            raise ValueError(name)
        return generate(
            int(n[1:]), int(batch[1:]), load=float(load[4:]), seed=int(seed[1:]), weighted=weights == "w"
        )
    except (ValueError, IndexError):
        domain = "of the form static-n50-b4-load0.6-w-s3"
        raise InputError(f"name must be {domain}, got {name!r}.") from None


def name_of(n: int, max_batch: int, load: float, seed: int, weighted: bool) -> str:
    """The name under which `named` generates a problem."""
    return f"static-n{n}-b{max_batch}-load{load:g}-{'w' if weighted else 'u'}-s{seed}"
