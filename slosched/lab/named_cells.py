"""Scenarios with names, to look inside: each isolates one thing that makes scheduling hard.

The population (`slosched.lab.population`) decides who is better; these say where and why. Most run on the
H100 preset of an 8B model with vLLM's defaults, so that they can be compared with each other.
"""

from __future__ import annotations

from typing import Any

from slosched.core.errors import require
from slosched.lab.population import OVERLOAD_EDGE, OVERLOAD_PEAK
from slosched.lab.scenarios import Scenario, Traffic

PACED: dict[str, Any] = {"ttft_x": (8.0, 8.0), "tpot_x": (3.0, 3.0)}
LASTING = (
    (0.0, OVERLOAD_EDGE), (0.2, OVERLOAD_EDGE), (0.2, OVERLOAD_PEAK), (0.8, OVERLOAD_PEAK),
    (0.8, OVERLOAD_EDGE), (1.0, OVERLOAD_EDGE),
)  # fmt: skip
SPIKES = ((0.0, 1.0), (0.3, 1.0), (0.3, 8.0), (0.35, 8.0), (0.35, 1.0), (0.7, 1.0), (0.7, 8.0), (0.75, 8.0),
          (0.75, 1.0), (1.0, 1.0))  # fmt: skip


def _cell(*classes: Traffic, **fields: Any) -> dict[str, Any]:
    """Fields of a scenario on vLLM's defaults for an H100."""
    usual = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "requests": 1500, "load": 1.0}
    return usual | {"classes": classes} | fields


def _one(family: str = "conversation", name: str = "", **fields: Any) -> Traffic:
    return Traffic(name=name or family, family=family, **fields)


_CELLS: dict[str, dict[str, Any]] = {
    "tight-pace": _cell(_one(**PACED), load=1.0),
    "tight-pace-overload": _cell(_one(**PACED), requests=2500, load=2.0),
    "tightest-pace": _cell(_one(ttft_x=(8.0, 8.0), tpot_x=(1.7, 1.7)), load=0.8),
    "small-budget": _cell(_one(**PACED), max_num_batched_tokens=1024, load=1.0),
    "few-slots": _cell(_one(**PACED), max_num_seqs=64, load=1.2),
    "little-memory": _cell(_one(**PACED), kv_tokens=65_536, load=1.0, tenants=20),
    "first-token-only": _cell(_one(ttft_x=(5.0, 5.0)), load=1.2),
    "whole-answer-only": _cell(
        _one("code", e2e_x=(5.0, 5.0)), _one(e2e_x=(4.0, 4.0)), load=1.2, requests=3000
    ),
    "own-limits": _cell(_one(ttft_x=(2.0, 10.0), tpot_x=(1.5, 5.0), per_request=True), load=1.0),
    "heavy-minority": _cell(_one(**PACED), heavy_share=0.1, requests=2500, load=2.0),
    "three-tiers": _cell(
        _one(name="gold", share=0.2, weight=8.0, **PACED),
        _one(name="silver", share=0.4, weight=2.0, ttft_x=(10.0, 10.0), tpot_x=(5.0, 5.0)),
        _one(name="free", share=0.4),
        load=1.2,
    ),
    "chat-and-summaries": _cell(
        _one("chat", **PACED), _one("summaries", share=0.5, e2e_x=(8.0, 8.0)), load=1.0
    ),
    "chat-and-reasoning": _cell(
        _one("conversation", **PACED), _one("reasoning", share=0.5, ttft_x=(8.0, 8.0), tpot_x=(3.0, 3.0)),
        preset="h100x4-llama-3.1-70b", max_num_seqs=128, kv_tokens=475_200, load=1.0,
    ),
    "agents": _cell(
        _one("agents", ttft_x=(5.0, 5.0), e2e_x=(5.0, 5.0)), preset="h200-llama-3.1-8b", kv_tokens=891_200,
        requests=1000, load=1.2,
    ),
    "conversations": _cell(_one("multi-turn", **PACED), requests=1500, load=0.8),
    "documents-beside-chat": _cell(_one("chat", **PACED), _one("documents", share=0.2, ttft_x=(6.0, 6.0))),
    "lasting-overload": _cell(_one(profile=LASTING, **PACED), requests=4500, load=1.4),
    "spikes": _cell(_one(profile=SPIKES, **PACED), load=0.7),
    "greedy-tenant": _cell(_one(**PACED), tenants=4, greedy_share=0.7, load=1.2),
    "lying-hints": _cell(_one(e2e_x=(5.0, 5.0)), forecast="hints:0.3", load=1.2),
    "small-gpu": _cell(
        _one("chat", **PACED), preset="rtx4090-llama-3.1-8b", max_num_seqs=256, max_num_batched_tokens=2048,
        kv_tokens=41_392, requests=1000, load=1.0,
    ),
    "short-burst": _cell(_one(**PACED), requests=300, load=2.0, burst=True),
}  # fmt: skip

NAMED = tuple(_CELLS)
"""Names of the named cells."""


def named(name: str, seed: int = 0) -> Scenario:
    """A named scenario.

    Parameters
    ----------
    name
        One of `NAMED`.
    seed
        Seed of its random streams.

    Examples
    --------
    >>> named("heavy-minority").heavy_weight
    10.0
    """
    require(name in _CELLS, "cell", "one of " + ", ".join(NAMED), name)
    return Scenario(name=name, seed=seed, **_CELLS[name])
