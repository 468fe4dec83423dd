"""slosched in Ray Serve: ``request_router_class="slosched.integrations.ray:SloRouter"``.

Importing this package does not import Ray; asking for `SloRouter` does.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "SloRouter":
        from slosched.integrations.ray.request_router import SloRouter

        return SloRouter
    raise AttributeError(name)
