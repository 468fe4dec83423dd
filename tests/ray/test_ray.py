"""Ray Serve with our router: two replicas that take as long as their prompts say."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# On a busy machine a replica takes longer to say how many requests it has than Serve allows by default.
os.environ |= dict.fromkeys(
    ("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S"), "60"
)
pytest.importorskip("ray.serve", reason="Ray Serve is not installed (make .venv-ray/.installed)")

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="Disabled")  # requests come by handles; a slow proxy would be killed
    yield
    serve.shutdown()
    ray.shutdown()


class Replica:
    """Answers after a millisecond a token asked for, or once a file is gone, and says who it is."""

    def __init__(self) -> None:
        self.name = serve.get_replica_context().replica_id.unique_id
        self.seen = 0

    async def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        self.seen += 1
        held = Path(request["while"]) if "while" in request else None
        if held is None:
            await asyncio.sleep(0.001 * float(request.get("max_tokens", 10)))
        else:
            held.write_text("begun")
            while held.exists():
                await asyncio.sleep(0.02)
        return {"replica": self.name, "id": request["id"]}

    def record_routing_stats(self) -> dict[str, Any]:
        return {"waiting": 0, "running": self.seen, "kv_used": 0.1}


def deployed(name: str, router: str) -> Any:
    config = RequestRouterConfig(
        request_router_class="slosched.integrations.ray:SloRouter",
        request_router_kwargs={"router": router},
        request_routing_stats_period_s=0.5,
    )
    deployment = serve.deployment(
        num_replicas=2, request_router_config=config, ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=100, health_check_timeout_s=600,
    )(Replica)  # fmt: skip
    return serve.run(deployment.bind(), name=name, route_prefix=None)


def ask(handle: Any, i: int, tokens: int, e2e_ms: float = 2000, **more: str) -> Any:
    slo = {"slo_e2e_ms": e2e_ms}
    return handle.remote({"id": i, "prompt": "hello " * 50, "max_tokens": tokens, "vllm_xargs": slo, **more})


@pytest.mark.parametrize("router", ["slosched", "round-robin"])
def test_two_replicas_share_the_work(cluster: None, router: str) -> None:
    """Every request is answered once, by both replicas in about equal parts."""
    handle = deployed(f"app-{router}", router)
    answers = [response.result(timeout_s=60) for response in [ask(handle, i, 100) for i in range(40)]]
    assert sorted(answer["id"] for answer in answers) == list(range(40))
    shares = Counter(answer["replica"] for answer in answers)
    assert len(shares) == 2
    assert min(shares.values()) >= 12
    serve.delete(f"app-{router}")


def test_a_loaded_replica_is_avoided(cluster: None, tmp_path: Path) -> None:
    """While one replica answers a long request, short ones that follow go mostly to the other.

    The long one can keep its limit, so it counts; it lasts until the short ones are done. Ray tells the
    router of an answer's end a moment after the client has it, so the short ones keep a distance.
    """
    handle, held = deployed("app-loaded", "slosched"), tmp_path / "held"
    long = ask(handle, 0, 6000, e2e_ms=600_000, **{"while": str(held)})
    until = time.monotonic() + 60
    while not held.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    short = []
    for i in range(1, 9):
        short.append(ask(handle, i, 20).result(timeout_s=60))
        time.sleep(0.25)
    held.unlink()
    slow = long.result(timeout_s=60)["replica"]
    assert sum(answer["replica"] != slow for answer in short) >= 5
    serve.delete("app-loaded")


def test_what_a_request_asks_for() -> None:
    """SLOs are read from mappings, from pydantic models, and from headers beside them."""
    from pydantic import BaseModel

    from slosched.integrations.ray import asked_of
    from slosched.integrations.vllm.config import Config

    class Body(BaseModel):
        prompt: str = "x" * 400
        max_tokens: int = 9
        vllm_xargs: dict[str, Any] = {"slo_ttft_ms": 250}

    class Info:
        def __init__(self) -> None:
            self.headers = {"X-SLO-TPOT-ms": "30"}

    pending = PendingRequest(args=[Body(), Info()], kwargs={}, metadata=None, future=None)
    asked = asked_of(pending, Config())
    assert (asked.claim.slo.ttft_s, asked.claim.slo.tpot_s) == (0.25, 0.03)
    assert (asked.prompt_tokens, asked.max_tokens) == (100, 9)


def test_a_router_that_is_no_longer_used_ends_its_thread() -> None:
    """Ray says nothing when it drops a router, or configures one anew: no thread outlives either."""
    import gc
    import threading

    from slosched.integrations.ray import SloRouter

    def threads() -> int:
        return sum(thread.name == "slosched-floors" for thread in threading.enumerate())

    before, router = threads(), SloRouter.__new__(SloRouter)
    router.initialize_state()
    router.initialize_state()
    assert threads() == before + 1
    del router
    gc.collect()
    assert threads() == before
