"""slosched in Ray Serve: ``request_router_class="slosched.integrations.ray:SloRouter"``.

Importing this package does not import Ray; asking for `SloRouter` does.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from slosched.core.errors import MissingExtraError


def __getattr__(name: str) -> Any:
    if name == "SloRouter":
        if find_spec("ray") is None:
            raise MissingExtraError("ray", "ray")
        from slosched.integrations.ray.request_router import SloRouter

        return SloRouter
    raise AttributeError(name)
