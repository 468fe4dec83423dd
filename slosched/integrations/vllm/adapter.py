"""vLLM's own scheduler class with slosched around its ``schedule``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.integrations.vllm.capability import OBSERVE_ONLY, probe
from slosched.integrations.vllm.clock import Clock, WallClock
from slosched.integrations.vllm.config import Config, load_config
from slosched.integrations.vllm.controller import Controller
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.probe_forecasts import foretold
from slosched.integrations.vllm.publishing import of_rank, rank_of
from slosched.integrations.vllm.state import Learned, set_aside
from slosched.policies import PolicySpec
from slosched.policies.base import Policy

logger = logging.getLogger("vllm.slosched")

_CLASSES: dict[type, type] = {}


class SloMixin:
    """Hooks around a vLLM scheduler: nothing of its loop is copied.

    The queue object in ``self.waiting`` is slosched's, once it is needed; before each ``schedule`` the
    controller orders, holds and preempts; afterwards it observes. An error of slosched's own is counted and
    never leaves a hook.
    """

    slosched: Controller

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Give a newcomer its row and hand it to vLLM."""
        _hook(self, Controller.arriving, self, request)
        result = super().add_request(request, *args, **kwargs)  # type: ignore[misc]
        _hook(self, Controller.added, request)
        return result

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, let vLLM schedule, and note what it scheduled."""
        controller = self.slosched
        controller.before(self)  # its errors are caught inside
        try:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            _hook(self, Controller.restore, self)
            raise
        try:
            controller.after(self, output)
        except Exception as error:
            controller.stats.failure("hook after", error)
        return output

    def get_grammar_bitmask(self, *args: Any, **kwargs: Any) -> Any:
        """Plan the next step, now that vLLM has given this one to the device, and go on as vLLM does."""
        _hook(self, Controller.beside_device, self)
        return super().get_grammar_bitmask(*args, **kwargs)  # type: ignore[misc]

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Let vLLM take in a step's output and note who got tokens and who is done."""
        _hook(self, Controller.settle, self)
        result = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        _hook(self, foretold, *args)
        _hook(self, Controller.updated, self, scheduler_output.num_scheduled_tokens)
        _hook(self, Controller.answers, result)
        return result

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Let vLLM end requests from outside and free their rows."""
        result = super().finish_requests(request_ids, *args, **kwargs)  # type: ignore[misc]
        finished = sorted(self.finished_req_ids)  # type: ignore[attr-defined]
        _hook(self, Controller.departed, self, finished)
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """Keep what was learned and let vLLM shut down."""
        _hook(self, Controller.close)
        return super().shutdown(*args, **kwargs)  # type: ignore[misc]


def _hook(scheduler: Any, hook: Callable[..., Any], *args: Any) -> None:
    """Call a hook of the scheduler's controller; its errors are counted and go no further."""
    controller = getattr(scheduler, "slosched", None)
    if controller is None:  # vLLM's own constructor is not done yet
        return
    try:
        hook(controller, *args)
    except Exception as error:
        controller.stats.failure(f"hook {hook.__name__}", error)


def adapted(base: type) -> type:
    """The subclass of a vLLM scheduler class that carries the hooks; one per base."""
    if base not in _CLASSES:
        _CLASSES[base] = type("Slo" + base.__name__, (SloMixin, base), {"__module__": __name__})
    return _CLASSES[base]


def base_class(vllm_config: Any) -> type:
    """The scheduler class that vLLM would have used without slosched."""
    config = copy.copy(vllm_config.scheduler_config)
    config.scheduler_cls = None
    if getattr(vllm_config, "diffusion_config", None) is not None:
        from vllm.v1.core.sched import diffusion_scheduler as diffusion

        name = "DiffusionAsyncScheduler" if config.async_scheduling else "DiffusionScheduler"
        return getattr(diffusion, name)  # type: ignore[no-any-return]
    return config.get_scheduler_cls()  # type: ignore[no-any-return]


def attach(
    scheduler: Any,
    vllm_config: Any,
    config: Config,
    clock: Clock,
    policy: Policy,
    learned: Learned,
    stats: Stats | None = None,
) -> Controller:
    """Put slosched's queue and controller into a scheduler that has just been made and is empty."""
    from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy

    if policy.budget_tokens is not None:
        least = int(scheduler.max_num_scheduled_tokens)
        scheduler.max_num_scheduled_tokens = min(least, policy.budget_tokens)
    capability = probe(scheduler, vllm_config, RequestQueue)
    if config.observe_only:
        capability = type(capability)(level=OBSERVE_ONLY, reasons=("the configuration asks for it",))
    beside = computes_alone(scheduler, vllm_config)
    controller = Controller(scheduler, policy, capability, config, clock, learned, beside=beside, stats=stats)
    if capability.level != OBSERVE_ONLY:
        RequestQueue.register(type(controller.queue))
        scheduler.policy = SchedulingPolicy.PRIORITY if policy.victim_worst else SchedulingPolicy.FCFS
        controller.handover.begin(scheduler)
    scheduler.slosched = controller
    return controller


def computes_alone(scheduler: Any, vllm_config: Any) -> bool:
    """Whether vLLM goes on while a step is computed: on a GPU, or in processes of their own.

    It asks for the step's grammar then. On a CPU that computes within the engine's own process, the step is
    done by that time.
    """
    device = str(getattr(getattr(vllm_config, "device_config", None), "device_type", "cpu"))
    others = int(getattr(getattr(vllm_config, "parallel_config", None), "world_size", 1)) > 1
    return hasattr(scheduler, "get_grammar_bitmask") and (device != "cpu" or others)


def make(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """The scheduler for one engine, configured from ``SLOSCHED_CONFIG``.

    Raises
    ------
    InputError
        If the configuration is wrong: an operator's mistake stops the start, never the service.
    """
    config = load_config()
    policy = make_policy(config)
    learned, stats, rank = Learned(config.engine), Stats(), rank_of(vllm_config)
    if config.state_file is not None:
        take_up(of_rank(config.state_file, rank), learned, stats)
    if config.step_log is not None:
        config = config.model_copy(update={"step_log": of_rank(config.step_log, rank)})
    scheduler = adapted(base_class(vllm_config))(vllm_config, *args, **kwargs)
    controller = attach(scheduler, vllm_config, config, WallClock(), policy, learned, stats)
    controller.planner.rehearse(rehearsal(controller.limits))
    reasons = f" ({'; '.join(controller.capability.reasons)})" if controller.capability.reasons else ""
    logger.info("slosched: policy %s, level %s%s", policy.name, controller.capability.level, reasons)
    controller.publish(scheduler, rank)
    return scheduler


def take_up(path: Path, learned: Learned, stats: Stats) -> None:
    """Take up the state of an earlier run; a file that cannot be read is kept aside, and said to be."""
    if not path.exists():
        return
    try:
        learned.load(path)
    except InputError as error:
        try:
            consequence = f"kept as {set_aside(path)}, beginning anew"
        except OSError as failed:
            consequence = f"beginning anew; it cannot be kept aside ({failed}) and will be overwritten"
        stats.failure("state file", error, consequence)


def make_policy(config: Config) -> Policy:
    """The configured policy; one that can plan beside the engine does.

    Raises
    ------
    InputError
        If the policy or a parameter is unknown.
    """
    spec = PolicySpec.parse(config.policy)
    spec.parameters.update(config.policy_parameters)
    return spec.make(config.seed, background=True)


def rehearsal(limits: Any) -> Snapshot:
    """A small queue that makes a policy go through its code once."""
    from slosched.core.forecast import LengthForecast
    from slosched.core.request import Request, Slo

    requests = [
        Request(
            request_id=str(i), prompt_tokens=8 + i, forecast=LengthForecast.point(4.0 + i),
            arrival_s=0.01 * i,
            slo=Slo(ttft_s=0.5 + i, tpot_s=0.1) if i % 2 else Slo(e2e_s=2.0 + i),
            generated_tokens=1 if i >= 12 else 0,
        )
        for i in range(16)
    ]  # fmt: skip
    small = limits.kv_tokens < 1000 or limits.max_num_seqs < 5
    return Snapshot.of(requests[:12], [] if small else requests[12:], engine=Engine(limits=limits))
