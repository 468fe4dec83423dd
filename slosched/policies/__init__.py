"""Scheduling policies; each is imported when it is named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slosched.policies.base import KeyPolicy as KeyPolicy
    from slosched.policies.base import Policy as Policy
    from slosched.policies.registry import POLICIES as POLICIES
    from slosched.policies.registry import PolicySpec as PolicySpec
    from slosched.policies.registry import policy as policy

_HOME = {
    "KeyPolicy": "slosched.policies.base",
    "POLICIES": "slosched.policies.registry",
    "Policy": "slosched.policies.base",
    "PolicySpec": "slosched.policies.registry",
    "policy": "slosched.policies.registry",
}

__all__ = ["POLICIES", "KeyPolicy", "Policy", "PolicySpec", "policy"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'slosched.policies' has no attribute {name!r}")
