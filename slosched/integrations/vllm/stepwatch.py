"""Times engine steps and teaches the step-time model."""

from __future__ import annotations

from typing import Any

from slosched.integrations.vllm.state import Learned

EVERY_FIRST = 64
EVERY_LATER = 32
"""Every step is looked at until `EVERY_FIRST` have been, then one in `EVERY_LATER`."""


class StepWatch:
    """Pairs the beginning and end of steps, first in, first out.

    With several steps in flight a step's time is what lies between the end of the one before and its own
    end. The work of a step is counted for the steps looked at only, since counting costs as much as planning.

    Attributes
    ----------
    decode_s
        Expected seconds of a step that decodes at the present batch size.
    """

    def __init__(self, learned: Learned, *, measure: bool) -> None:
        self._learned, self._measure = learned, measure
        self._begun: dict[int, tuple[float, tuple[float, float, float, float] | None]] = {}
        self._count = 0
        self._last_end = 0.0
        self.decode_s = learned.step_time.model.base_s

    def begin(self, tokens: dict[str, int], scheduler: Any, now: float) -> None:
        """A step was scheduled."""
        if not self._measure:
            return
        self._count += 1
        look = self._count <= EVERY_FIRST or self._count % EVERY_LATER == 0
        self._begun[id(tokens)] = (now, work(tokens, scheduler.requests) if look else None)

    def end(self, tokens: dict[str, int], now: float) -> None:
        """A step's output has come."""
        begun = self._begun.pop(id(tokens), None)
        last, self._last_end = self._last_end, now
        if begun is None or begun[1] is None:
            return
        prefill, attention, sequences, kv = begun[1]
        online = self._learned.step_time
        online.observe(prefill, attention, sequences, kv, now - max(begun[0], last))
        model = online.model
        if sequences > 0:
            self.decode_s = model.base_s + model.sequence_s * sequences + model.kv_token_s * kv


def work(tokens: dict[str, int], requests: dict[str, Any]) -> tuple[float, float, float, float]:
    """Prefill tokens, attention work, decoding requests and context read of a step just scheduled.

    The definitions are those of `slosched.steptime.StepTimeModel`.
    """
    prefill = attention = sequences = kv = 0.0
    for request_id, n in tokens.items():
        request = requests.get(request_id)
        if request is None:
            continue
        before = request.num_computed_tokens - n
        if n == 1 and before >= request.num_prompt_tokens and before + 1 >= request.num_tokens:
            sequences += 1.0
            kv += before
        else:
            prefill += n
            attention += n * (before + n / 2.0)
    return prefill, attention, sequences, kv
