"""Stand-ins for vLLM's request, and the skip where vLLM is absent."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.state import Learned


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("vllm") is None:
        skip = pytest.mark.skip(reason="vLLM is not installed")
        for item in items:
            if "vllm" in item.keywords and item.get_closest_marker("vllm") is not None:
                item.add_marker(skip)


class FakeRequest:
    """What the adapter reads of a vLLM request."""

    def __init__(self, **fields: Any) -> None:
        self.output = 0
        self.num_prompt_tokens = 10
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    @property
    def num_output_tokens(self) -> int:
        return self.output

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.output


def fake_request(request_id: str, arrival_s: float = 0.0, **fields: Any) -> FakeRequest:
    extra = fields.pop("extra", None)
    values = {
        "priority": 0, "num_prompt_tokens": 10, "num_computed_tokens": 0, "max_tokens": 100, "output": 0,
        "num_preemptions": 0, "status": SimpleNamespace(name="WAITING"), **fields,
    }  # fmt: skip
    return FakeRequest(
        request_id=request_id,
        arrival_time=arrival_s,
        sampling_params=SimpleNamespace(extra_args=extra),
        **values,
    )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger(clock: VirtualClock) -> Ledger:
    return Ledger(Config(), clock, Learned("h100-llama-3.1-8b"), Stats())
