"""Filling one step from a line of requests until a time budget is used up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot
from slosched.policies.pace import in_decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a step holds.

    Parameters
    ----------
    tokens
        Tokens of each row of the line.
    prefill_tokens
        How many of them are prefill, at least 1.
    skip
        Running rows of the line to pass over: those that get nothing, and prefills that get a part only
        though a waiting row is ahead of them in line, since the engine serves running rows first.
    """

    tokens: Ints
    prefill_tokens: int
    skip: Ints


def todo_tokens(snapshot: Snapshot, rows: Ints) -> Ints:
    """Tokens to compute until the next output token, at least 1; what a prefix cache has is left out."""
    t = snapshot.table
    have = np.maximum(t.computed_tokens[rows], t.cached_tokens[rows])
    return np.asarray(np.maximum(1, t.prompt_tokens[rows] + t.generated_tokens[rows] - have))


def fill(snapshot: Snapshot, line: Ints, budget_s: float) -> Filled:
    """Give tokens to the rows of `line` in turn, as long as the step is predicted to take `budget_s` at most.

    Parameters
    ----------
    snapshot
        The engine.
    line
        Running rows and admissible waiting ones, the most urgent first.
    budget_s
        Seconds the step may take; infinity for no limit but the engine's token budget. The first row always
        gets a token.

    Examples
    --------
    >>> from slosched import Engine, EngineLimits, LengthForecast, Request, StepTimeModel
    >>> queue = [Request(request_id=str(i), prompt_tokens=300, forecast=LengthForecast.point(9))
    ...          for i in range(3)]
    >>> engine = Engine(limits=EngineLimits(), step_time=StepTimeModel(base_s=0.01, prefill_token_s=1e-4))
    >>> fill(Snapshot.of(queue, engine=engine), np.arange(3), 0.05505).tokens.tolist()
    [300, 150, 0]
    """
    t, model = snapshot.table, snapshot.step_time
    have = np.maximum(t.computed_tokens[line], t.cached_tokens[line])
    decode = in_decode(snapshot, line)
    want = np.where(decode, 1, todo_tokens(snapshot, line))
    prefill = np.where(decode, 0, want)
    total = np.cumsum(want)
    before = np.cumsum(prefill), np.cumsum(prefill * (have + prefill / 2))
    decodes = np.cumsum(decode), np.cumsum(np.where(decode, have, 0))
    room = snapshot.limits.max_num_batched_tokens
    fits = (model.predict(*before, *decodes) <= budget_s) & (total <= room)
    whole = len(line) if fits.all() else int(np.argmin(fits))
    tokens = np.where(np.arange(len(line)) < whole, want, 0)
    if whole < len(line):
        last = whole
        left = min(room - (int(total[last - 1]) if last else 0), int(want[last]))
        if not decode[last] and left > 0:
            chunk = np.arange(1, left + 1)
            seconds = model.predict(
                before[0][last] - prefill[last] + chunk,
                before[1][last] - prefill[last] * (have[last] + prefill[last] / 2)
                + chunk * (have[last] + chunk / 2),
                decodes[0][last], decodes[1][last],
            )  # fmt: skip
            tokens[last] = np.searchsorted(seconds, budget_s, side="right")
        if last == 0:
            tokens[0] = max(1, int(tokens[0]))
    runs = np.isin(line, snapshot.running)
    overtaken = np.cumsum(~runs & (tokens > 0)) > 0
    passed = runs & ((tokens == 0) | (overtaken & (tokens < want)))
    prefill_tokens = max(1, int(tokens[~decode].sum()))
    return Filled(tokens=tokens, prefill_tokens=prefill_tokens, skip=line[passed])
