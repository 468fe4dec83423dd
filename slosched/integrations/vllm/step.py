"""What holds for one step of the engine, and dies with it."""

from __future__ import annotations

from typing import Any

from slosched.integrations.vllm.passing import PassedOver


class Step:
    """One call of the scheduler's ``schedule``: what was changed for it, so that all of it can be undone.

    Parameters
    ----------
    number
        Steps of this engine up to and including this one.

    Attributes
    ----------
    fenced
        Rows that must not be admitted, since a step in flight still computes them.
    held
        Waiting rows that the policy holds back.
    passed
        Who was passed over; None if nobody was.
    """

    __slots__ = ("_lowered", "fenced", "held", "number", "passed")

    def __init__(self, number: int, fenced: list[int]) -> None:
        self.number, self.fenced = number, fenced
        self.held: list[int] = []
        self.passed: PassedOver | None = None
        self._lowered: dict[str, int] | None = None

    def lower(self, scheduler: Any, name: str, value: int) -> None:
        """Lower a limit of the scheduler's until `undo`; a limit that is lower already stays."""
        whole = getattr(scheduler, name, None)
        if whole is None or value >= whole:
            return
        if self._lowered is None:
            self._lowered = {}
        self._lowered.setdefault(name, whole)
        setattr(scheduler, name, value)

    def undo(self, scheduler: Any) -> None:
        """Put back whatever was changed for this step; calling it again changes nothing."""
        if self.passed is not None:
            self.passed.put_back(scheduler)
        if self._lowered is not None:
            for name, value in self._lowered.items():
                setattr(scheduler, name, value)
            self._lowered = None
