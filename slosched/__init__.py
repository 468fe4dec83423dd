"""slosched decides, at every step of an LLM inference engine, which requests go next.

The public API is what this module lists; everything else may change between releases. Names are loaded on
first use, so that ``import slosched`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slosched.core.engine import Engine as Engine
    from slosched.core.engine import EngineLimits as EngineLimits
    from slosched.core.errors import InputError as InputError
    from slosched.core.forecast import LengthForecast as LengthForecast
    from slosched.core.request import Request as Request
    from slosched.core.request import Slo as Slo
    from slosched.core.snapshot import Snapshot as Snapshot
    from slosched.core.steptime import StepTimeModel as StepTimeModel
    from slosched.ordering import order as order
    from slosched.planner.plan import Plan as Plan
    from slosched.policies import KeyPolicy as KeyPolicy
    from slosched.policies import Policy as Policy
    from slosched.policies import policy as policy
    from slosched.simulator import simulate as simulate
    from slosched.solvers.solve import solve as solve
    from slosched.workloads import Workload as Workload

__version__ = "0.1.0"

_HOME = {
    "Engine": "slosched.core.engine",
    "EngineLimits": "slosched.core.engine",
    "InputError": "slosched.core.errors",
    "KeyPolicy": "slosched.policies",
    "LengthForecast": "slosched.core.forecast",
    "Plan": "slosched.planner.plan",
    "Policy": "slosched.policies",
    "policy": "slosched.policies",
    "Request": "slosched.core.request",
    "Slo": "slosched.core.request",
    "Snapshot": "slosched.core.snapshot",
    "StepTimeModel": "slosched.core.steptime",
    "Workload": "slosched.workloads",
    "order": "slosched.ordering",
    "simulate": "slosched.simulator",
    "solve": "slosched.solvers.solve",
}

__all__ = [
    "Engine",
    "EngineLimits",
    "InputError",
    "KeyPolicy",
    "LengthForecast",
    "Plan",
    "Policy",
    "Request",
    "Slo",
    "Snapshot",
    "StepTimeModel",
    "Workload",
    "__version__",
    "order",
    "policy",
    "simulate",
    "solve",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'slosched' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
