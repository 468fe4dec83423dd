"""The conformance suite of policies: what every one must do, whatever its idea."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS, LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.registry import policy_of
from slosched.simulator import StepRecord, simulate
from slosched.testing.suite import Fault, ensure, run_checks

NOW_S = 100.0
"""Clock of the random snapshots."""
MODEL = StepTimeModel(base_s=0.005, prefill_token_s=4e-5, sequence_s=5e-5, kv_token_s=3e-8)
"""Step time of the random snapshots."""
SEEDS = 40
"""Random snapshots of a check."""
CROWD = 10_000
"""Waiting requests of the largest queue."""

Make = Callable[[], Policy]
"""Makes a fresh policy object."""


class PolicyFault(Fault):
    """A policy does what none may do; the message says in which check and how."""


def check_policy(policy: str | Make) -> list[str]:
    """Run the conformance suite on a policy.

    Parameters
    ----------
    policy
        A class, anything else that makes a fresh policy object when called, or a name as on the command line
        (`slosched.policies.registry.PolicySpec`).

    Returns
    -------
    list of str
        Names of the checks, all passed.

    Raises
    ------
    PolicyFault
        At the first check that fails.
    InputError
        If there is no policy of that name.

    Examples
    --------
    >>> from slosched import KeyPolicy
    >>> class ShortestPrompt(KeyPolicy):
    ...     name = "shortest-prompt"
    ...     def key(self, snapshot, rows):
    ...         return snapshot.table.prompt_tokens[rows].astype(float)
    >>> check_policy(ShortestPrompt)[:2]
    ['lawful', 'nobody']
    """
    make: Make = (lambda: policy_of(policy)) if isinstance(policy, str) else policy
    return run_checks(CHECKS, make, Policy, PolicyFault)


# the checks -------------------------------------------------------------------------------------------------


def lawful(make: Make) -> None:
    """A plan names only rows of its queue, each once, and asks for nothing its policy does not announce."""
    for seed in range(SEEDS):
        _lawful(make(), random_snapshot(seed), f"snapshot {seed}")


def nobody(make: Make) -> None:
    """A queue of nobody and a queue of one leave nothing to order."""
    for running in (0, 3):
        for waiting in (0, 1):
            _lawful(
                make(), random_snapshot(1 + waiting, waiting=waiting, running=running), f"{waiting} waiting"
            )


def deterministic(make: Make) -> None:
    """Two fresh objects that see the same snapshots make the same plans."""
    plans = []
    for _ in range(2):
        fresh = make()
        seen = [random_snapshot(7, waiting=20), random_snapshot(7, waiting=20, step=41)]
        plans.append([fresh.plan(snapshot) for snapshot in seen])
    for a, b in zip(*plans, strict=True):
        ensure(_same(a, b), "two fresh objects make different plans of the same snapshots")


def nameless(make: Make) -> None:
    """Other request ids and other row numbers give the same order of the same requests."""
    for seed in range(8):
        ids = make().plan(random_snapshot(seed)).request_ids
        renamed = random_snapshot(seed)
        names = renamed.table.request_ids
        others = {name: f"n{len(names) - i:06}" for i, name in enumerate(names)}
        renamed.table.request_ids = [others[name] for name in names]
        found = make().plan(renamed).request_ids
        ensure(found == [others[i] for i in ids], "the order depends on the requests' names")
        shuffled = make().plan(random_snapshot(seed, shuffle=True)).request_ids
        ensure(shuffled == ids, "the order depends on the requests' rows")


def reads_only(make: Make) -> None:
    """Planning changes no column of the table and neither queue."""
    for attached in (False, True):
        snapshot, before = (random_snapshot(11, waiting=15) for _ in range(2))
        snapshot.table.detached = not attached
        make().plan(snapshot)
        for queue in ("waiting", "running"):
            same = np.array_equal(getattr(snapshot, queue), getattr(before, queue))
            ensure(same, f"a plan changes the snapshot's {queue} rows")
        for column, value in vars(before.table).items():
            if isinstance(value, np.ndarray):
                same = np.array_equal(getattr(snapshot.table, column), value, equal_nan=True)
                ensure(same, f"a plan changes the table's column {column}")


def known_by_name(make: Make) -> None:
    """Kept over snapshots with tables of their own, it decides as on one table."""
    from slosched.core.kept import KeptTable

    rng = np.random.default_rng(17)
    everyone = [random_request(rng, f"r{i}", False) for i in range(25)]
    one, other, table = make(), make(), KeptTable()
    running: list[Request] = []
    for step in range(12):
        waiting = [r for r in everyone if r not in running and hash(r.prompt_tokens) % 11 != step % 11]
        fresh = Snapshot.of(waiting, running, now_s=NOW_S + step, engine=Engine(step_time=MODEL))
        kept, back = table.adopt(fresh)
        mine, theirs = one.plan(fresh), other.plan(kept)
        ensure(_same(mine, theirs.on(fresh, back)), f"a kept policy mixes requests up at snapshot {step}")
        running = [replace(r, generated_tokens=r.generated_tokens + 1) for r in running]
        admitted = mine.request_ids[:1]
        running += [replace(r, generated_tokens=1) for r in waiting if r.request_id in admitted]
        everyone = [r for r in everyone if r.request_id not in {x.request_id for x in running}]


def hostile(make: Make) -> None:
    """Limits in the past, weights of 1e-12 and 1e12, no limits, one slot, no memory, forecasts off."""
    for seed in range(6):
        for name, snapshot in _hostile(seed):
            _lawful(make(), snapshot, name)


def jumping_clock(make: Make) -> None:
    """One object lives through a clock that jumps forth and back, and a queue that is new each time."""
    mine = make()
    for seed, now_s in enumerate((NOW_S, NOW_S + 1e6, NOW_S - 50.0, NOW_S + 1e-9, 0.0)):
        _lawful(mine, replace(random_snapshot(seed), now_s=now_s), f"clock at {now_s:g} s")


def crowd(make: Make) -> None:
    """Ten thousand waiting requests and one slot."""
    snapshot = random_snapshot(3, waiting=CROWD, running=4)
    _lawful(make(), snapshot, f"{CROWD} waiting")


def serves_everybody(make: Make) -> None:
    """In overload all but the refused finish, and no step goes by without tokens while requests wait."""
    for seed in range(3):
        work, engine = overload(seed)
        _served(make(), work, engine, f"overload {seed}")


def one_slot(make: Make) -> None:
    """An engine that serves one request at a time."""
    work, engine = overload(5)
    _served(make(), work, engine.with_limits(max_num_seqs=1), "one slot")


def step_time_off(make: Make) -> None:
    """Three times too fast or too slow a step-time model: the plans stay lawful."""
    for seed in range(4):
        snapshot = random_snapshot(seed, waiting=20, running=4)
        for factor in (1 / 3, 3.0):
            model = StepTimeModel(
                base_s=factor * MODEL.base_s, prefill_token_s=factor * MODEL.prefill_token_s,
                sequence_s=factor * MODEL.sequence_s, kv_token_s=factor * MODEL.kv_token_s,
            )  # fmt: skip
            off = replace(snapshot, engine=replace(snapshot.engine, step_time=model))
            _lawful(make(), off, f"step times {factor:.2g} times the real ones")


def static_keys(make: Make) -> None:
    """A policy that says its order never changes sorts by keys that never change."""
    mine = make()
    if not mine.static:
        return
    ensure(isinstance(mine, KeyPolicy), "a static policy must be a KeyPolicy")
    assert isinstance(mine, KeyPolicy)
    snapshot = random_snapshot(2, waiting=20)
    later = replace(snapshot, now_s=NOW_S + 50.0, running=snapshot.running[:0])
    same = np.array_equal(mine.key(snapshot, snapshot.waiting), mine.key(later, snapshot.waiting))
    ensure(same, "a static policy's keys change")


def documented(make: Make) -> None:
    """It has a name and says what it is."""
    mine = make()
    ensure(isinstance(mine.name, str) and bool(mine.name), "a policy must have a name")
    words = inspect.getdoc(type(mine)) or ""
    ensure(words != inspect.getdoc(Policy) and len(words) > 10, "a policy's class must have a docstring")


CHECKS: dict[str, Callable[[Make], None]] = {
    check.__name__: check
    for check in (
        lawful, nobody, deterministic, nameless, reads_only, known_by_name, hostile, jumping_clock, crowd,
        serves_everybody, one_slot, step_time_off, static_keys, documented,
    )
}  # fmt: skip
"""Every check by name, for a test of one's own that runs them one by one."""


# what they look at ------------------------------------------------------------------------------------------


def random_request(rng: np.random.Generator, name: str, running: bool) -> Request:
    """A request with any subset of limits, perhaps hopeless, perhaps preempted before, perhaps outlived."""

    def limit(scale: float) -> float | None:
        return float(scale * rng.lognormal(0, 1.5)) if rng.random() < 0.5 else None

    age = float(rng.choice([0.01, 1.0, 80.0]) * rng.random()) + 0.001
    started = running or rng.random() < 0.2
    return Request(
        request_id=name,
        prompt_tokens=int(rng.integers(1, 1500)),
        forecast=LengthForecast.lognormal(float(rng.integers(2, 400)), float(rng.random())),
        slo=Slo(ttft_s=limit(1.0), tpot_s=limit(0.02), e2e_s=limit(20.0)),
        arrival_s=NOW_S - age,
        weight=float(rng.choice([0.0, 0.5, 1.0, 4.0])),
        priority=int(rng.integers(0, 3)),
        slo_class=str(rng.choice(["a", "b"])),
        generated_tokens=int(rng.integers(1, 600)) if started else 0,
    )


def random_snapshot(
    seed: int,
    *,
    waiting: int | None = None,
    running: int | None = None,
    label: str = "r",
    shuffle: bool = False,
    step: int = 40,
) -> Snapshot:
    """Up to 30 waiting and 12 running requests of every kind.

    Parameters
    ----------
    seed
        Seed of the requests and of the engine.
    waiting, running
        How many, instead of drawn numbers.
    label, shuffle
        Change names and row numbers only.
    step
        Number of the step.
    """
    rng = np.random.default_rng(seed)
    n_waiting = int(rng.integers(0, 31)) if waiting is None else waiting
    n_running = int(rng.integers(0, 13)) if running is None else running
    limits = EngineLimits(
        max_num_seqs=max(1, n_running + int(rng.choice([0, 0, 1, 10]))),
        max_num_batched_tokens=int(rng.choice([8, 100, 2048])),
        kv_blocks=max(1, 140 * n_running + int(rng.choice([0, 20, 2000]))),
    )
    queue = [random_request(rng, f"{label}{i}", False) for i in range(n_waiting)]
    active = [random_request(rng, f"{label}{n_waiting + i}", True) for i in range(n_running)]
    if shuffle:
        queue = [queue[i] for i in np.random.default_rng(seed + 1).permutation(n_waiting)]
    snapshot = Snapshot.of(queue, active, now_s=NOW_S, engine=Engine(limits=limits, step_time=MODEL))
    t = snapshot.table
    everyone = np.concatenate([snapshot.waiting, snapshot.running])
    t.prefix_index[everyone] = t.prompt_tokens[everyone] % 5 - 1  # some begin alike, some are not known
    t.program_index[everyone] = t.prefix_index[everyone]
    for row in snapshot.waiting.tolist():
        if t.generated_tokens[row] > 0:
            t.preemptions[row] = 1
            t.first_token_s[row] = t.arrival_s[row] + (NOW_S - t.arrival_s[row]) / 2
    for row in snapshot.running.tolist():
        t.first_token_s[row] = t.arrival_s[row] + (NOW_S - t.arrival_s[row]) / 3
        if t.prompt_tokens[row] % 4 == 0:  # still in prefill
            t.generated_tokens[row], t.first_token_s[row] = 0, np.nan
            t.computed_tokens[row] = t.prompt_tokens[row] // 2
    return replace(snapshot, step=step)


def overload(seed: int) -> tuple[Workload, Engine]:
    """Thirty requests at once on an engine with little memory, some past hope from the start."""
    rng = np.random.default_rng(seed)
    n = 30
    work = Workload.plain(
        np.sort(rng.random(n) * 0.5), rng.integers(1, 200, size=n), rng.integers(1, 60, size=n)
    )
    limits = EngineLimits(
        max_num_seqs=int(rng.integers(1, 8)),
        max_num_batched_tokens=int(rng.choice([8, 64, 256])),
        kv_blocks=int(rng.integers(20, 60)),
    )
    promised = replace(
        work,
        ttft_s=np.where(rng.random(n) < 0.5, 0.001 + rng.random(n), np.inf),
        tpot_s=np.where(rng.random(n) < 0.5, 0.004 + 0.01 * rng.random(n), np.inf),
        e2e_s=np.where(rng.random(n) < 0.5, 0.01 + 3 * rng.random(n), np.inf),
        weight=rng.choice([0.0, 1.0, 2.0], size=n),
        priority=rng.integers(0, 3, size=n),
        atoms=np.sort(np.maximum(1.0, work.atoms * rng.lognormal(0, 1, work.atoms.shape)), axis=1),
    )
    model = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)
    return promised, Engine(limits=limits, step_time=model)


def _hostile(seed: int) -> Iterable[tuple[str, Snapshot]]:
    """Snapshots that no tidy queue gives, each with a name."""
    snapshot = random_snapshot(seed, waiting=15, running=3)

    def with_(**columns: float) -> Snapshot:
        """The snapshot with the same value in all rows of some columns."""
        table: RequestTable = snapshot.table
        changed = {}
        for name, value in columns.items():
            column = getattr(table, name)
            changed[name] = np.full_like(column, value)
        return replace(snapshot, table=table.with_columns(**changed))

    inf = float("inf")
    yield "limits in the past", with_(ttft_s=1e-9, tpot_s=1e-9, e2e_s=1e-9)
    yield "no limits", with_(ttft_s=inf, tpot_s=inf, e2e_s=inf)
    yield "weights of 1e-12", with_(weight=1e-12)
    yield "weights of 1e12", with_(weight=1e12)
    yield "no weight", with_(weight=0.0)
    weight = snapshot.table.weight.copy()
    weight[::2], weight[1::2] = 1e-12, 1e12
    yield "weights of 1e-12 and 1e12", replace(snapshot, table=snapshot.table.with_columns(weight=weight))
    for length in (1.0, 1e7):
        atoms = np.full((len(snapshot.table.weight), FORECAST_ATOMS), length)
        table = snapshot.table.with_columns(atoms=atoms)
        yield f"forecasts of {length:g} tokens", replace(snapshot, table=table)
    yield "arrivals in the future", replace(snapshot, now_s=0.0)
    yield "no memory", replace(snapshot, free_blocks=0)
    full = snapshot.engine.with_limits(max_num_seqs=max(1, len(snapshot.running)))
    yield "no slot", replace(snapshot, engine=full)
    yield "one token a step", replace(snapshot, engine=snapshot.engine.with_limits(max_num_batched_tokens=1))
    yield "everything alike", with_(arrival_s=NOW_S - 1.0, ttft_s=1.0, weight=1.0, prompt_tokens=10)


# how they judge ---------------------------------------------------------------------------------------------


def _lawful(policy: Policy, snapshot: Snapshot, where: str) -> None:
    """One plan, whose rows are where they should be and whose parts the policy's attributes announce."""
    plan = policy.plan(snapshot)
    try:
        plan.check()
    except InputError as error:
        raise Fault(f"{where}: {error}") from None
    everybody = sorted([*plan.sequence.tolist(), *plan.reject.tolist()])
    ensure(everybody == sorted(snapshot.waiting.tolist()), f"{where}: a waiting request is lost")
    ensure(
        plan.policy == policy.name, f"{where}: the plan's policy must be {policy.name!r}, got {plan.policy!r}"
    )
    least = plan.prefill_tokens is None or plan.prefill_tokens >= 1
    ensure(least, f"{where}: prefill_tokens must be None or at least 1, got {plan.prefill_tokens}")
    orders = policy.skips or policy.preempts
    for used, allowed, part, attribute in (
        (len(plan.preempt), policy.preempts, "preempt", "preempts"),
        (len(plan.reject), policy.rejects, "reject", "rejects"),
        (len(plan.skip), policy.skips or policy.paces, "skip", "skips"),
        (plan.prefill_tokens is not None, policy.paces or policy.skips, "prefill_tokens", "paces"),
        (plan.running_order is not None, orders or policy.paces, "running_order", "skips"),
    ):
        words = (
            f"{where}: a plan with {part} needs {attribute} = True in its policy, or no engine asks for it"
        )
        ensure(not used or allowed, words)


def _served(policy: Policy, work: Workload, engine: Engine, where: str) -> None:
    """A whole run: all but the refused finish, no step is empty."""
    logs: list[StepRecord] = []
    run = simulate(work, policy, engine=engine, record=logs)
    refused = run.outcomes.rejected
    if refused is None:
        refused = np.zeros(len(work), dtype=np.bool_)
    ensure(bool((run.outcomes.finished | refused).all()), f"{where}: a request is neither served nor refused")
    ensure(policy.rejects or not refused.any(), f"{where}: refusals need rejects = True")
    ensure(
        len(np.unique(logs[0].step)) == run.log.steps, f"{where}: a step without tokens while requests wait"
    )


def _same(a: Plan, b: Plan) -> bool:
    """Whether two plans decide alike."""
    order = (None if p.running_order is None else p.running_order.tolist() for p in (a, b))
    return (
        a.sequence.tolist() == b.sequence.tolist()
        and all(
            sorted(getattr(a, k).tolist()) == sorted(getattr(b, k).tolist())
            for k in ("hold", "preempt", "skip")
        )
        and sorted(a.reject.tolist()) == sorted(b.reject.tolist())
        and a.prefill_tokens == b.prefill_tokens
        and next(order) == next(order)
    )
