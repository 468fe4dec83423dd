"""Adversity for the real scheduler: random plans, aborts and resets, with every token checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import PrefixBlocks, Workload
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.registry import policy_of
from slosched.testing.chaos_features import Feature, features_of
from slosched.testing.harness import make_request, runner_output
from slosched.testing.virtual_clock import Flight, VirtualEngine

MAX_TURNS = 200
"""Turns of the engine per request after which a request counts as stuck; a dozen is usual."""


class RandomPolicy(Policy):
    """Random order, holds, preemptions, refusals, pauses, running order and prefill budget in every step."""

    name: ClassVar[str] = "random-plans"
    preempts: bool = True
    paces: ClassVar[bool] = True
    rejects: bool = True
    skips: ClassVar[bool] = True

    def __init__(self, seed: int, preempt: float = 0.3) -> None:
        self._rng = np.random.default_rng(seed)
        self._preempt = preempt

    def plan(self, snapshot: Snapshot) -> Plan:
        """Anything that is allowed."""
        rng = self._rng
        order = rng.permutation(snapshot.waiting)
        hold = order[rng.random(len(order)) < 0.2]
        preempt = snapshot.running[rng.random(len(snapshot.running)) < self._preempt * (rng.random() < 0.5)]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order[: int(rng.integers(0, len(order) + 1))],
            hold=hold,
            preempt=preempt[:3],
            running_order=rng.permutation(snapshot.running) if rng.random() < 0.5 else None,
            prefill_tokens=int(rng.integers(0, 64)) if rng.random() < 0.3 else None,
            reject=order[-1:] if rng.random() < 0.02 else order[:0],
            skip=snapshot.running[rng.random(len(snapshot.running)) < 0.1],
        )


class RandomWorstVictim(RandomPolicy):
    """The same, with memory taken from the running request of the worst priority."""

    victim_worst: ClassVar[bool] = True


class ChaosEngine(VirtualEngine):
    """A virtual engine in which clients abort and operators reset the prefix cache at random."""

    features: list[Feature]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.features = []
        self.pooled: dict[int, bool] = {}
        self.embeddings = self.overlapped = 0

    def use_features(self, features: list[Feature]) -> None:
        """Give the scheduler, which has been made, and the requests to come these features."""
        self.features = features
        for feature in features:
            feature.prepare(self)

    def dress(self, i: int, keywords: dict[str, Any]) -> None:
        """Each feature changes what it must."""
        for feature in self.features:
            feature.dress(self, i, keywords)

    def made(self, i: int, request: Any) -> None:
        """Each feature sees the request."""
        for feature in self.features:
            feature.made(self, i, request)

    def schedule(self) -> Any:
        """Ask vLLM for a step; each feature looks at it."""
        output = super().schedule()
        for feature in self.features:
            feature.scheduled(self, output)
        return output

    def sample(self, row: int, request: Any, output: Any) -> list[int]:
        """The tokens of a request, as a feature has it or as usual."""
        for feature in self.features:
            tokens = feature.sample(self, row, request, output)
            if tokens is not None:
                return tokens
        return super().sample(row, request, output)

    def reply(self, ids: list[str], samples: list[list[int]]) -> Any:
        """Tokens; for pooling requests whose prompt is done, a result in their place."""
        if self.pooled:
            done = [self.live[i].num_computed_tokens >= self.live[i].num_prompt_tokens for i in ids]
            reply = runner_output(ids, [[] for _ in ids], [np.zeros(1) if end else None for end in done])
        else:
            reply = super().reply(ids, samples)
        for feature in self.features:
            feature.reply(self, reply)
        return reply

    def landed(self, flight: Flight) -> None:
        """Each feature does what comes after a step."""
        self.overlapped += len(self.flights) > 0
        for feature in self.features:
            feature.landed(self, flight)

    def receive(self, request_id: str, tokens: list[int], finish_reason: Any) -> None:
        """Check the tokens a client would get, or that a pooling request ends without any."""
        row = self.row[request_id]
        if row not in self.pooled:
            super().receive(request_id, tokens, finish_reason)
            return
        if tokens or finish_reason is None:
            raise InputError(f"pooling request {request_id!r} must get a result and no token, got {tokens}.")
        self.embeddings += 1
        self.finish_ps[row] = self.now_ps
        self.preemptions[row] = int(self.live.pop(request_id).num_preemptions)

    def disturb(self, seed: int, *, abort: float = 0.02, reset: float = 0.01) -> None:
        """Set the chances of an abort and of a reset in each turn."""
        self._rng = np.random.default_rng(seed)
        self._abort, self._reset = abort, reset
        self.aborted = self.resets = self.turns = 0

    def advance(self) -> None:
        """One turn of the engine, perhaps preceded by a disturbance."""
        from vllm.v1.request import RequestStatus

        self.turns += 1
        if self.turns > MAX_TURNS * len(self.ids):
            left = {"waiting": len(self.scheduler.waiting), "running": len(self.scheduler.running)}
            raise InputError(f"no request may be lost or stuck, got {len(self.live)} without an end, {left}.")
        if self.live and self._rng.random() < self._abort:
            request_id = str(self._rng.choice(list(self.live)))
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            self.scheduler.finish_requests("nobody", RequestStatus.FINISHED_ABORTED)
            del self.live[request_id]
            self.aborted += 1
        if self._rng.random() < self._reset:
            running = self._rng.random() < 0.5 and all(feature.resets_running for feature in self.features)
            self.scheduler.reset_prefix_cache(reset_running_requests=bool(running))
            self.resets += 1
        for feature in self.features:
            feature.turn(self)
        super().advance()

    def check_empty(self) -> None:
        """Raise unless nothing is left behind: requests, rows, blocks."""
        scheduler, controller = self.scheduler, self.scheduler.slosched
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        left = {
            "requests": len(scheduler.requests),
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "rows": len(controller.ledger.rows),
            "steps in flight": len(controller.in_flight),
            "blocks": self.limits.kv_blocks - free,
        }
        if any(left.values()):
            raise InputError(f"nothing must be left behind, got {left}.")


def chaos_workload(n: int, seed: int, *, prefix_cache: bool) -> Workload:
    """Requests that arrive fast enough to queue, some with shared prompts."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 200, n)
    prefix = None
    if prefix_cache:
        blocks = [int(rng.integers(0, p // 16 + 1)) for p in prompt.tolist()]
        ids = [1000 * int(rng.integers(0, 6)) for _ in range(n)]
        prefix = PrefixBlocks(
            offsets=np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64),
            ids=np.array([i + j for i, b in zip(ids, blocks, strict=True) for j in range(b)], dtype=np.int64),
            block_tokens=16,
        )
    return Workload.plain(
        np.sort(rng.uniform(0, n / 50, n)), prompt, rng.integers(1, 40, n), prefix=prefix, name="chaos"
    )


def with_limits(workload: Workload, seed: int) -> Workload:
    """The same work with limits, some hopeless: on the first token only, on the pace, on the whole answer."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, len(workload))
    return replace(
        workload,
        ttft_s=np.where(kind <= 1, 0.02 + rng.random(len(workload)), np.inf),
        tpot_s=np.where(kind == 1, 0.01 + 0.02 * rng.random(len(workload)), np.inf),
        e2e_s=np.where(kind == 2, 0.1 + 3 * rng.random(len(workload)), np.inf),
        weight=rng.choice([0.0, 1.0, 2.0], len(workload)),
        atoms=np.sort(np.maximum(1.0, workload.atoms * rng.lognormal(0, 1, workload.atoms.shape)), axis=1),
    )


def keeps_stale_output() -> bool:
    """Whether this vLLM tracks the output of steps in flight over a preemption."""
    probe = make_request("probe", [1], max_tokens=1, arrival_s=0.0, priority=0, block_tokens=16, hashed=False)
    return hasattr(probe, "num_stale_output_tokens")


def run_chaos(
    n: int,
    seed: int,
    *,
    asynchronous: bool,
    depth: int,
    prefix_cache: bool,
    kv_blocks: int = 60,
    worst_victim: bool = False,
    reset: float | None = None,
    features: Iterable[str] = (),
    policy: str | None = None,
) -> dict[str, Any]:
    """Put `n` requests through the real scheduler under random plans, aborts and resets.

    With `policy`, a name as on the command line, requests have limits and that policy plans instead.
    `features` names what else is in use, of `slosched.testing.chaos_features.FEATURES`. `reset` is the chance
    of a reset in each turn. By default it is 0.01, but 0 with the asynchronous scheduler of releases before
    0.27, which then loses tokens by itself.

    Returns
    -------
    dict
        Counts: requests, aborted, resets, preemptions, held and skipped (one a step and request), rejected,
        steps, and what shows that each feature was in use.

    Raises
    ------
    InputError
        If a token is wrong, a request is lost or stuck, a plan or a hook fails, anything is left behind, or a
        feature is unknown.
    """
    limits = EngineLimits(
        max_num_seqs=8, max_num_batched_tokens=128, kv_blocks=kv_blocks, block_tokens=16, max_model_len=512,
        prefix_cache=prefix_cache,
    )  # fmt: skip
    workload = chaos_workload(n, seed, prefix_cache=prefix_cache)
    if policy is not None:
        workload = with_limits(workload, seed + 3)
    engine = ChaosEngine(
        workload,
        Engine(limits=limits, step_time=StepTimeModel(base_s=0.01, prefill_token_s=2e-5)),
        depth=depth, asynchronous=asynchronous,
    )  # fmt: skip
    if policy is not None:
        engine.use_policy(policy_of(policy))
    else:
        engine.use_policy(RandomWorstVictim(seed) if worst_victim else RandomPolicy(seed))
    chosen = features_of(features, seed + 2, asynchronous=asynchronous, depth=depth)
    engine.use_features(chosen)
    if reset is None:
        reset = 0.0 if asynchronous and not keeps_stale_output() else 0.01
    engine.disturb(seed + 1, reset=reset)
    engine.run()
    for feature in chosen:
        feature.close(engine)
    engine.scheduler.schedule()  # vLLM's own clean-up after the last abort
    engine.check_empty()
    stats = engine.scheduler.slosched.stats
    failures = {reason: n for reason, n in stats.fallbacks.items() if reason != "all-held"}
    if failures:
        raise InputError(f"no plan and no hook may fail, got {failures}: {stats.errors}.")
    by_whom = "" if policy is None else f" by {policy}"
    done = {"preemptions": stats.preempted, "held": stats.held, "skipped": stats.skipped}
    if policy is None:
        done["rejected"] = stats.rejected
    return {
        "requests": n,
        "aborted": engine.aborted,
        "resets": engine.resets,
        **{event + by_whom: count for event, count in done.items()},
        "steps": engine.steps,
        **({"async_overlapped": engine.overlapped} if asynchronous and depth > 1 else {}),
        **{event: int(count) for feature in chosen for event, count in feature.events.items()},
    }


def never_happened(counts: dict[str, Any]) -> list[str]:
    """What the counts of runs show as never having happened: such runs prove less than they seem to."""
    return sorted(name for name, count in counts.items() if count == 0)
