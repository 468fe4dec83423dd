"""What authors of policies and adapters test with: `check_policy`, chaos, a virtual clock, small models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slosched.testing.policies import PolicyFault as PolicyFault
    from slosched.testing.policies import check_policy as check_policy

_HOME = {"PolicyFault": "slosched.testing.policies", "check_policy": "slosched.testing.policies"}

__all__ = ["PolicyFault", "check_policy"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'slosched.testing' has no attribute {name!r}")
