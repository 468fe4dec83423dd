"""Why a request missed its SLO: what happened to it, which decisions cost it, what would have saved it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import InputError
from slosched.core.outcome import Outcomes, Run
from slosched.core.snapshot import Snapshot
from slosched.lab.runfile import RunFile
from slosched.planner.plan import Plan
from slosched.policies import policy as policy_by_name
from slosched.policies.base import Policy
from slosched.simulator import simulate
from slosched.simulator.engine import StepRecord

MOST_NAMED = 5
"""Requests named in a list; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The same run with one thing changed.

    Parameters
    ----------
    change
        In words.
    met
        Whether the request then keeps its limits.
    others_saved, others_lost
        Other requests that keep their limits only then, and only otherwise.
    """

    change: str
    met: bool
    others_saved: int
    others_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The story of one request.

    Parameters
    ----------
    request_id
        Its name.
    met
        Whether it kept all its limits.
    facts
        What happened, in sentences, in order of time.
    what_ifs
        The run done again with one change each; empty if it kept its limits.
    """

    request_id: str
    met: bool
    facts: tuple[str, ...]
    what_ifs: tuple[WhatIf, ...]

    @property
    def words(self) -> list[str]:
        """Everything in sentences."""
        lines = list(self.facts)
        for w in self.what_ifs:
            cost = f"; others: {w.others_saved} more meet theirs, {w.others_lost} fewer"
            lines.append(f"{w.change}: {'meets its limits' if w.met else 'still misses'}{cost}.")
        return lines


def why(run: RunFile, request_id: str) -> Why:
    """Tell what happened to a request, by simulating the run again with every step recorded.

    Parameters
    ----------
    run
        A saved run.
    request_id
        Name of the request; its number where the workload has no names.

    Raises
    ------
    InputError
        If there is no such request, or the run does not repeat itself (it was made by another version or
        with parameters of its own).

    Examples
    --------
    >>> from dataclasses import replace
    >>> from slosched.core.engine import Engine
    >>> from slosched.core.steptime import StepTimeModel
    >>> from slosched.workloads import Workload
    >>> work = Workload.plain(np.array([0.0, 0.1]), np.array([4000, 50]), np.array([100, 5]))
    >>> work = replace(work, ttft_s=np.array([np.inf, 0.2]))
    >>> steps = StepTimeModel(base_s=0.01, prefill_token_s=1e-3)
    >>> first = simulate(work, "fcfs", engine=Engine(step_time=steps))
    >>> saved = RunFile(policy="fcfs", seed=0, workload=work, engine=Engine(step_time=steps),
    ...                 finish_s=first.outcomes.finish_s)
    >>> story = why(saved, "1")
    >>> story.met, story.what_ifs[0].change, story.what_ifs[0].met
    (False, 'Alone on the engine', True)
    """
    names = _names(run)
    if request_id not in names:
        some = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
        raise InputError(f"request must be one of the run's {len(names)} ({some}), got {request_id!r}.")
    row = names.index(request_id)
    record: list[StepRecord] = []
    again = _again(run, record)
    met = bool(again.outcomes.met[row])
    return Why(
        request_id=request_id,
        met=met,
        facts=tuple(_facts(run, again, record[0], row, names)),
        what_ifs=() if met else tuple(_what_ifs(run, again, row)),
    )


def missed(run: RunFile) -> list[str]:
    """Names of the requests of a saved run that missed a limit, by arrival; raises as `why` does."""
    names = _names(run)
    return [names[row] for row in np.flatnonzero(~_again(run, []).outcomes.met).tolist()]


def _names(run: RunFile) -> tuple[str, ...]:
    return run.workload.request_ids or tuple(str(i) for i in range(len(run.workload)))


def _again(run: RunFile, record: list[StepRecord]) -> Run:
    """The run once more, with every step recorded."""
    again = simulate(
        run.workload, policy_by_name(run.policy, seed=run.seed), engine=run.engine,
        seed=run.seed, record=record,
    )  # fmt: skip
    if not np.array_equal(again.outcomes.finish_s, run.finish_s, equal_nan=True):
        raise InputError(
            f"the run must repeat itself, but policy {run.policy!r} of this version decides otherwise: "
            "save the run anew."
        )
    return again


def _facts(run: RunFile, again: Run, record: StepRecord, row: int, names: tuple[str, ...]) -> list[str]:
    out, work = again.outcomes, run.workload
    arrived = float(out.arrival_s[row])
    if not np.isfinite(arrived):
        return [f"{names[row]} was never sent: the answer before it in its session never ended."]
    limits = _limit_words(out, row)
    facts = [
        f"{names[row]} ({work.classes[work.class_index[row]]}) arrived at {arrived:.2f} s with "
        f"{work.prompt_tokens[row]} prompt tokens; its answer has {work.output_tokens[row]} tokens, "
        f"{work.atoms[row].mean():.0f} were expected.",
        ("It kept its limits: " if out.met[row] else "It missed: ")
        + ("; ".join(limits) or "none given")
        + ".",
    ]
    if not np.isfinite(out.admitted_s[row]):
        return [*facts, "It was never admitted."]
    waited = float(out.admitted_s[row]) - arrived
    ahead = np.flatnonzero((out.arrival_s > arrived) & (out.admitted_s < out.admitted_s[row]))
    facts.append(
        f"It waited {waited:.2f} s"
        + (f", overtaken by {len(ahead)} later requests ({_some(ahead, names)})" if len(ahead) else "")
        + "."
    )
    facts += _engine_time(run, out, record, row, names)
    if out.preemptions[row]:
        facts.append(
            f"It was preempted {out.preemptions[row]} times; {out.recomputed_tokens[row]} tokens were "
            "computed again."
        )
    return facts


def _engine_time(
    run: RunFile, out: Outcomes, record: StepRecord, row: int, names: tuple[str, ...]
) -> list[str]:
    """Who had the engine while it was in prefill and while it decoded."""
    mine = record.step[record.row == row]
    if not len(mine) or not np.isfinite(out.first_token_s[row]):
        return ["It never got a first token."]
    prompt = int(run.workload.prompt_tokens[row])
    tokens = record.tokens[record.row == row]
    done = int(np.searchsorted(np.cumsum(tokens), prompt))
    words = []
    first, last = mine[0], mine[min(done, len(mine) - 1)]
    prefill_s = float(out.first_token_s[row] - out.admitted_s[row])
    words.append(
        f"Its prompt took {min(done, len(mine) - 1) + 1} of {last - first + 1} steps and {prefill_s:.2f} s"
        + _beside(record, first, last, row, names)
        + "."
    )
    decodes = int(run.workload.output_tokens[row]) - 1
    if decodes > 0 and np.isfinite(out.finish_s[row]):
        tpot = float(out.tpot_s[row])
        alone = float(run.engine.step_time.predict(sequences=1, kv_tokens=prompt))
        words.append(
            f"Its answer took {1e3 * tpot:.1f} ms a token, {1e3 * alone:.1f} ms were the least possible"
            + _beside(record, last + 1, mine[-1], row, names)
            + "."
        )
    return words


def _beside(record: StepRecord, first: int, last: int, row: int, names: tuple[str, ...]) -> str:
    """The prompt tokens of others in some steps."""
    beside = (record.step >= first) & (record.step <= last) & (record.row != row) & (record.tokens > 1)
    if not beside.any():
        return ""
    tokens = np.bincount(record.row[beside], record.tokens[beside])
    most = np.argsort(-tokens, kind="stable")
    most = most[tokens[most] > 0]
    return f", beside {int(tokens.sum())} prompt tokens of others ({_some(most, names)})"


def _what_ifs(run: RunFile, again: Run, row: int) -> list[WhatIf]:
    work, met = run.workload, again.outcomes.met
    alone = simulate(work.rows(np.array([row])), "fcfs", engine=run.engine)
    found = [
        WhatIf(change="Alone on the engine", met=bool(alone.outcomes.met[0]), others_saved=0, others_lost=0)
    ]

    def trial(change: str, policy: Policy, workload: object = None) -> None:
        """Run it again with one thing changed, and note what that saves and costs."""
        changed = simulate(
            work if workload is None else workload,  # type: ignore[arg-type]
            policy, engine=run.engine, seed=run.seed,
        ).outcomes.met  # fmt: skip
        others = np.arange(len(met)) != row
        found.append(
            WhatIf(
                change=change,
                met=bool(changed[row]),
                others_saved=int((changed & ~met & others).sum()),
                others_lost=int((met & ~changed & others).sum()),
            )
        )

    def same() -> Policy:
        return policy_by_name(run.policy, seed=run.seed)

    trial("First in line from its arrival", _First(same(), row), work)
    atoms = work.atoms.copy()
    atoms[row] = work.output_tokens[row]
    if not np.array_equal(atoms, work.atoms):
        trial("With its true length known", same(), replace(work, atoms=atoms))
    weight = work.weight.copy()
    weight[row] *= 10
    trial("With ten times its weight", same(), replace(work, weight=weight))
    if run.policy != "fcfs":
        trial("Under first come, first served", policy_by_name("fcfs"), work)
    else:
        trial("Under slosched", policy_by_name("slosched", seed=run.seed), work)
    return found


class _First(Policy):
    """Another policy, but one request goes first."""

    name = "first"

    def __init__(self, inner: Policy, row: int) -> None:
        self._inner, self._row = inner, row
        for attribute in ("preempts", "paces", "victim_worst", "rejects", "skips", "budget_tokens"):
            if hasattr(inner, attribute):
                setattr(self, attribute, getattr(inner, attribute))

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan of the policy within, with the one row first in line."""
        plan = self._inner.plan(snapshot)
        if self._row not in snapshot.waiting:
            return plan
        first = np.array([self._row], dtype=np.int64)

        def others(rows: Ints) -> Ints:
            return np.asarray(rows[rows != self._row])

        return replace(
            plan, order=np.concatenate([first, others(plan.order)]), hold=others(plan.hold),
            reject=others(plan.reject),
        )  # fmt: skip


def _limit_words(out: Outcomes, row: int) -> list[str]:
    words = []
    for kind in ("ttft", "tpot", "e2e", "ttfat"):
        limit = float(getattr(out.workload, f"{kind}_s")[row])
        if np.isfinite(limit):
            value = float(getattr(out, f"{kind}_s")[row])
            kept = "kept" if value <= limit else "missed"
            words.append(f"{kind.upper() if kind != 'e2e' else kind} {value:.3g} s of {limit:.3g} s ({kept})")
    return words


def _some(rows: Ints, names: tuple[str, ...]) -> str:
    listed = ", ".join(names[row] for row in rows[:MOST_NAMED].tolist())
    return listed + (f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else "")
