"""Cells of a study: one scenario under one policy, and the loop that runs them, resumable from its store."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

from slosched.core.engine import Engine
from slosched.core.errors import require
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.lab.digests import ROOT, code_digest, policy_digest
from slosched.lab.environment import environment
from slosched.lab.figures import figures, plan_times_us
from slosched.lab.fleet import FleetScenario
from slosched.lab.parallel import Progress, Workers
from slosched.lab.scenarios import Scenario
from slosched.lab.store import Plain, Record, Store, digest_of
from slosched.policies.base import Policy
from slosched.policies.registry import PolicySpec
from slosched.routers import router
from slosched.simulator import simulate

ENGINE_MODULES = ("slosched.simulator.engine", "slosched.lab.scenarios", "slosched.lab.figures")
"""With all they import: the code behind every result, whatever the policy."""
FLEET_MODULES = ("slosched.simulator.fleet", "slosched.lab.fleet")
"""And behind those of a fleet."""
GENERATED = "generators of this package"
"""Source of the data behind a scenario."""
LONG_PREFILL = "long_prefill_token_threshold"
OWN_ROUTER = "slosched"
"""The router where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A policy with its parameters, the knobs of the engine that its operator would set by hand, a router.

    Parameters
    ----------
    policy
        As on the command line: ``name``, ``name:key=value``, ``package.module:Class``, with ``@TOKENS``.
    router
        Which engine of a fleet a request goes to; one engine needs none.
    long_prefill_token_threshold
        vLLM's limit on the prompt tokens of one request per step; 0 for none.

    Examples
    --------
    >>> Contender.parse("priority@512, long_prefill_token_threshold=256").long_prefill_token_threshold
    256
    >>> Contender.parse("fcfs, router=power-of-two").router
    'power-of-two'
    """

    policy: str
    router: str = OWN_ROUTER
    long_prefill_token_threshold: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the words of a policy, perhaps followed by ``, router=NAME`` and the engine's knob."""
        policy, *rest = re.split(rf",\s*(router|{LONG_PREFILL})=", text)
        given = {name: value.strip() for name, value in zip(rest[::2], rest[1::2], strict=True)}
        require(len(given) == len(rest) // 2, "policy", "words that name each knob once", text)
        tokens = given.get(LONG_PREFILL, "0")
        require(tokens.isdigit(), LONG_PREFILL, "an integer of at least 0", text)
        PolicySpec.parse(policy)
        chosen = given.get("router", OWN_ROUTER)
        router(chosen)
        return cls(policy=policy.strip(), router=chosen, long_prefill_token_threshold=int(tokens))

    @property
    def label(self) -> str:
        """How tables call it: as it is written in a configuration."""
        knobs = f", router={self.router}" if self.router != OWN_ROUTER else ""
        long = self.long_prefill_token_threshold
        return self.policy + knobs + (f", {LONG_PREFILL}={long}" if long else "")

    @property
    def family(self) -> str:
        """Name of the policy, and of another's router, without parameters: variants are no rivals."""
        name = PolicySpec.parse(self.policy).name
        return name if self.router.split(":")[0] == OWN_ROUTER else f"{name} behind {self.router}"

    @property
    def may_refuse(self) -> bool:
        """Whether it may refuse requests: such policies form a league of their own."""
        return self.make(0).rejects

    def make(self, seed: int) -> Policy:
        """A fresh policy object."""
        return PolicySpec.parse(self.policy).make(seed)

    def engine(self, engine: Engine) -> Engine:
        """The engine with this contender's knobs; the token budget comes with the policy."""
        if not self.long_prefill_token_threshold:
            return engine
        limits = replace(engine.limits, long_prefill_token_threshold=self.long_prefill_token_threshold)
        return replace(engine, limits=limits)

    def key(self) -> Plain:
        """What decides its behaviour: its words, and the code behind it."""
        return {"contender": self.label, "policy_code": policy_code(self.policy)}


@lru_cache(maxsize=1024)
def policy_code(policy: str) -> str:
    """Digest of the code behind a policy, as it is written on the command line."""
    return policy_digest(PolicySpec.parse(policy).make(0))


class Runnable(Protocol):
    """What `run_cells` runs: one result, and all that it depends on; must be picklable."""

    @property
    def whole(self) -> bool:
        """Whether the whole run is wanted beside its figures; no file keeps it."""
        ...

    def key(self) -> Plain:
        """All that the result depends on."""
        ...

    def record(self) -> Record:
        """Run it, and keep its figures."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One scenario under one contender."""

    scenario: Scenario
    contender: Contender

    @property
    def whole(self) -> bool:
        """A study of scenarios keeps figures only."""
        return False

    def key(self) -> Plain:
        """All that the result depends on."""
        fleet = isinstance(self.scenario, FleetScenario)
        own = {"router_code": policy_digest(router(self.contender.router))} if fleet else {}
        return {
            "scenario": self.scenario.name,
            "seed": self.scenario.seed,
            "parameters": digest_of(self.scenario.model_dump(mode="json")),
            "data": GENERATED,
            "code": code_digest(*ENGINE_MODULES, *(FLEET_MODULES if fleet else ())),
        } | self.contender.key() | own  # fmt: skip

    def record(self) -> Record:
        """Run it, and keep its figures."""
        scenario = self.scenario
        real = scenario.traffic()
        run = self._run(real.workload)
        result = figures(run, window_s=real.window_s, burst=scenario.burst)
        # Wall times differ from run to run: they are no part of the result.
        wall = {"wall_s": round(run.log.wall_s, 3)} | plan_times_us(run.log)
        return Record(key=self.key(), result=result, provenance=dict(provenance()) | wall)

    def _run(self, workload: Workload) -> Run:
        scenario, contender = self.scenario, self.contender
        if isinstance(scenario, FleetScenario):
            return scenario.run(
                workload, contender.router, contender.policy, knobs=contender.engine, measure=True
            )
        return simulate(
            workload,
            contender.make(scenario.seed),
            engine=contender.engine(scenario.engine),
            seed=scenario.seed,
            measure_plans=True,
        )


def run_cells(
    cells: Sequence[Runnable],
    store: Store,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    workers: Callable[[None, int], Workers[None]] = Workers,
    pool: Workers[None] | None = None,
) -> list[Record]:
    """Results of cells in their order: those that the store has, and those that are run now.

    Parameters
    ----------
    cells
        What to run; a cell that stands twice is run once.
    store
        Results so far; each new one is added at once, so that an interrupted study goes on where it stopped.
    jobs
        Processes.
    progress
        Called after each run with (done, all).
    workers
        What makes the processes; `slosched.lab.parallel.RayWorkers` spreads them over machines.
    pool
        Processes that are running already, in place of `jobs` and `workers`.
    """
    keys = [cell.key() for cell in cells]
    pairs = zip(cells, keys, strict=True)
    missing = _first_of_each((cell, key) for cell, key in pairs if not _known(cell, key, store))
    done = len(cells) - len(missing)
    if progress is not None:
        progress(done, len(cells))
    if missing:
        with workers(None, min(jobs, len(missing))) if pool is None else nullcontext(pool) as some:
            for _, record in some.each(_record, missing):
                store.add(record)
                done += 1
                if progress is not None:
                    progress(done, len(cells))
    return [store[key] for key in keys]


def _known(cell: Runnable, key: Plain, store: Store) -> bool:
    return key in store and not (cell.whole and store[key].run is None)


def adopt(
    cells: Sequence[Cell], store: Store, *, sample: int, progress: Progress | None = None
) -> dict[str, tuple[int, int]]:
    """Take over results that other code made, where a sample of them comes out the same to the digit.

    A digest of code says that something changed, not that it matters. For each contender, `sample` of the
    cells whose results were made by other code are run again; if all agree, the others are taken over, and
    their provenance says so. If one does not, none is.

    Parameters
    ----------
    cells
        What a study is about to run; those the store has already are left alone.
    store
        Results so far; gets the new and the adopted ones.
    sample
        Cells run again for each contender, at least 1.
    progress
        Called after each run with (done, all).

    Returns
    -------
    dict
        {label of contender: (adopted, of how many candidates)}.
    """
    require(sample >= 1, "adopt", "an integer of at least 1", sample)
    old = {digest_of(_without_code(record.key)): record for record in store.records()}
    found: dict[str, list[tuple[Cell, Plain, Record]]] = {}
    for cell in cells:
        key = cell.key()
        record = old.get(digest_of(_without_code(key)))
        if key not in store and record is not None:
            found.setdefault(cell.contender.label, []).append((cell, key, record))
    count = sum(min(sample, len(some)) for some in found.values())
    done, adopted = 0, {}
    for label, some in found.items():
        # Evenly over the scenarios, the same every time.
        chosen = some[:: -(-len(some) // sample)]
        same = True
        for cell, _, record in chosen:
            again = cell.record()
            store.add(again)
            same = same and again.result == record.result
            done += 1
            if progress is not None:
                progress(done, count)
        rest = [entry for entry in some if entry[1] not in store] if same else []
        for _, key, record in rest:
            origin = {name: record.key[name] for name in CODE if name in record.key}
            origin["checked"] = f"{len(chosen)} of {len(some)}"
            provenance_now = record.provenance | {"adopted": origin}
            store.add(Record(key=key, result=record.result, provenance=provenance_now))
        adopted[label] = (len(rest), len(some))
    return adopted


CODE = ("code", "policy_code", "router_code")
"""Parts of a key that are digests of code."""


def _without_code(key: Plain) -> Plain:
    return {name: value for name, value in key.items() if name not in CODE}


def _first_of_each(pairs: Iterable[tuple[Runnable, Plain]]) -> list[Runnable]:
    found: dict[str, Runnable] = {}
    for cell, key in pairs:
        found.setdefault(digest_of(key), cell)
    return list(found.values())


def _record(_: None, cell: Runnable) -> Record:
    return cell.record()


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Where results of this process are made: commit, whether files differ from it, versions, machine."""
    about = environment()
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no") or ""),
        "python": about["python"],
        "packages": json.loads(json.dumps(about["packages"])),
        "machine": f"{about['cores']} cores of {about['cpu']}, {about['system']}",
    }


def _git(*words: str) -> str | None:
    """Answer of git about the folder this package lies in; None outside a checkout."""
    if not (ROOT.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(ROOT.parent)), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def provenance_of(records: Iterable[Record]) -> dict[str, list[str]]:
    """Where results were made: every commit, machine, source of data and digest of code among them."""
    found: dict[str, dict[str, None]] = {"commit": {}, "machine": {}, "python": {}, "data": {}, "code": {}}
    for record in records:
        about = record.provenance
        commit = f"{about['commit']}{' with changes' if about['dirty'] else ''}"
        for name, value in (
            ("commit", commit), ("machine", about["machine"]), ("python", about["python"]),
            ("data", record.key["data"]), ("code", record.key["code"]),
        ):  # fmt: skip
            found[name].setdefault(str(value))
    return {name: list(values) for name, values in found.items()}
