"""How a request that the scheduler refused is told from others; nothing heavy is imported here."""

from __future__ import annotations

REASON = "rejected by slosched"
"""``stop_reason`` of a refused request; its ``finish_reason`` is "abort"."""
