"""The conformance suite of routers: what every one must do, whatever its idea."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable
from slosched.core.workload import Workload
from slosched.routers import router as router_by_name
from slosched.routers.base import EngineStatus, FleetSnapshot, Router, Routing
from slosched.routers.books import FleetBooks
from slosched.simulator.fleet import Change, simulate_fleet
from slosched.testing.suite import Fault, ensure, run_checks

NOW_S = 50.0
"""Clock of the random fleets."""
SEEDS = 30
"""Random fleets of a check."""
MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=128, kv_blocks=400, prefix_cache=True)

Make = Callable[[], Router]
"""Makes a fresh router object."""


class RouterFault(Fault):
    """A router does what none may do; the message says in which check and how."""


def check_router(router: str | Make) -> list[str]:
    """Run the conformance suite on a router.

    Parameters
    ----------
    router
        A class, anything else that makes a fresh router object when called, or a name as on the command
        line.

    Returns
    -------
    list of str
        Names of the checks, all passed.

    Raises
    ------
    RouterFault
        At the first check that fails.
    InputError
        If there is no router of that name.

    Examples
    --------
    >>> from slosched.routers import PickRouter
    >>> class FirstOpen(PickRouter):
    ...     name = "first-open"
    ...     def pick(self, row, fleet):
    ...         return fleet.open[0]
    >>> check_router(FirstOpen)
    ['lawful', 'deterministic', 'reads_only', 'avoids_the_closed', 'loses_nobody']
    """
    make: Make = (lambda: router_by_name(router)) if isinstance(router, str) else router
    return run_checks(CHECKS, make, Router, RouterFault)


def lawful(make: Make) -> None:
    """A decision names only rows the router may decide about, each once, and engines that accept."""
    for seed in range(SEEDS):
        _decided(make(), random_fleet(seed))


def deterministic(make: Make) -> None:
    """Two fresh objects that see the same fleets decide alike."""
    for seed in range(8):
        a, b = (_decided(make(), random_fleet(seed)) for _ in range(2))
        ensure(a == b, "two fresh objects decide differently about the same fleet")


def reads_only(make: Make) -> None:
    """A decision changes no column of the table."""
    fleet, before = random_fleet(3), random_fleet(3)
    _decided(make(), fleet)
    for column, value in vars(before.table).items():
        if isinstance(value, np.ndarray):
            same = np.array_equal(value, getattr(fleet.table, column), equal_nan=value.dtype.kind == "f")
            ensure(same, f"a decision changes the table's column {column}")


def avoids_the_closed(make: Make) -> None:
    """With one engine that accepts, requests go there or are held."""
    for seed in range(8):
        fleet = random_fleet(seed)
        only = seed % len(fleet.engines)
        engines = tuple(replace(view, accepts=i == only) for i, view in enumerate(fleet.engines))
        routing = _decided(make(), replace(fleet, engines=engines))
        ensure(all(engine == only for _, engine in routing.send), "a request goes to a closed engine")


def loses_nobody(make: Make) -> None:
    """Every request ends once, while engines join, drain and fail, though statistics are old."""
    for seed in range(3):
        work = random_work(seed)
        engine = Engine(name="small", limits=LIMITS, step_time=MODEL)
        changes = [
            Change(at_s=0.4, engine=2, kind="join"),
            Change(at_s=0.8, engine=0, kind="drain"),
            Change(at_s=1.2, engine=1, kind="fail"),
        ]
        run = simulate_fleet(work, [engine] * 3, make(), "edf", changes=changes, statistics_s=0.5, seed=seed)
        out = run.outcomes
        rejected = np.zeros(len(work), dtype=np.bool_) if out.rejected is None else out.rejected
        ended = out.finished.astype(int) + run.lost + rejected
        ensure(bool(np.all(ended == 1)), f"requests {np.flatnonzero(ended != 1).tolist()} did not end once")


CHECKS: dict[str, Callable[[Make], None]] = {
    check.__name__: check for check in (lawful, deterministic, reads_only, avoids_the_closed, loses_nobody)
}
"""The checks by name, in the order in which they run."""


def random_fleet(seed: int, *, engines: int = 4, requests: int = 30, pending: int = 1) -> FleetSnapshot:
    """Engines with random queues and statistics, and requests with random limits that wait for a decision."""
    rng = np.random.default_rng((seed, 77))
    table = RequestTable(requests + pending)
    fleet = [
        Engine(
            name=f"e{i}",
            limits=replace(LIMITS, kv_blocks=int(rng.integers(200, 900))),
            step_time=replace(MODEL, base_s=float(rng.uniform(0.003, 0.02))),
        )
        for i in range(engines)
    ]
    books = FleetBooks(fleet, table)
    arrivals = np.sort(NOW_S - rng.exponential(2.0, requests + pending))
    for i, arrival_s in enumerate(arrivals.tolist()):
        limits = [float(x) if rng.random() < 0.5 else None for x in rng.uniform(0.02, 5.0, 3)]
        row = table.add(
            Request(
                request_id=f"r{i}", prompt_tokens=int(rng.integers(1, 1000)), arrival_s=arrival_s,
                forecast=LengthForecast.lognormal(float(rng.uniform(1, 300)), 0.5),
                slo=Slo(ttft_s=limits[0], tpot_s=limits[1], e2e_s=limits[2]),
                weight=float(rng.choice([0.5, 1.0, 5.0])),
            )
        )  # fmt: skip
        books.arrived(row, rng.integers(0, 6, int(rng.integers(0, 5))))
        if i < requests:
            books.sent(row, int(rng.integers(engines)))
            if rng.random() < 0.4:
                table.first_token_s[row] = min(NOW_S, arrival_s + rng.exponential(0.5))
                table.generated_tokens[row] = int(rng.integers(1, 200))
    for i in range(engines):
        if rng.random() < 0.8:
            status = EngineStatus(
                at_s=NOW_S - float(rng.exponential(0.5)), waiting=int(rng.integers(20)),
                running=int(rng.integers(8)), kv_used=float(rng.random()),
            )  # fmt: skip
            books.said(i, status)
    return books.snapshot(NOW_S)


def random_work(seed: int) -> Workload:
    """Sixty requests over two seconds, some with limits, with shared beginnings."""
    rng = np.random.default_rng((seed, 78))
    n = 60
    work = Workload.plain(np.sort(2 * rng.random(n)), rng.integers(1, 200, n), rng.integers(1, 40, n))
    return replace(
        work,
        ttft_s=np.where(rng.random(n) < 0.5, 0.05 + rng.random(n), np.inf),
        tpot_s=np.where(rng.random(n) < 0.3, 0.01 + 0.02 * rng.random(n), np.inf),
        e2e_s=np.where(rng.random(n) < 0.3, 0.1 + 3 * rng.random(n), np.inf),
        weight=rng.choice([0.0, 1.0, 3.0], n),
    )


def _decided(router: Router, fleet: FleetSnapshot) -> Routing:
    routing = router.route(fleet)
    routing.check(fleet)
    named = {row for row, _ in routing.send} | set(routing.refuse)
    everybody = set(fleet.pending.tolist()) <= named
    ensure(router.holds or everybody, "a request is held by a router that says it holds none")
    return routing
