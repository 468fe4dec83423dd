"""Where thinking ends: finds the mark among the tokens that have come, and learns how long classes think."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable
from slosched.core.thinking import aim_at_answers, aim_now
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.slo_fields import Claim
from slosched.predictors.history import ClassHistory

logger = logging.getLogger("vllm.slosched")


class ThinkingWatch:
    """Watches the requests of one engine that may think; does nothing where no mark is configured.

    Parameters
    ----------
    config
        Its `thinking` names the mark.
    table
        The engine's requests; `answer_s`, `thinking_tokens` and `e2e_s` are kept up to date.
    history
        Lengths of thinking by class, learned here.
    """

    def __init__(self, config: Config, table: RequestTable, history: ClassHistory) -> None:
        self._table, self._history = table, history
        named = config.thinking
        self._mark = named.end if named is not None and isinstance(named.end, int) else -1
        self._text = named.end if named is not None and isinstance(named.end, str) else ""
        self._watched: dict[str, tuple[int, Any, int]] = {}  # row, request, tokens read
        self.on = named is not None

    def reads(self, tokenizer: Callable[[], Any]) -> None:
        """Find the number of a mark given as text; one that is no single token ends the watch."""
        if not self._text:
            return
        try:
            found = tokenizer().encode(self._text, add_special_tokens=False)
            if len(found) != 1:
                raise InputError(f"thinking.end must be one token of the model, got {len(found)}.")
            self._mark = int(found[0])
        except Exception as error:
            self.on = False
            logger.error("slosched: limits on first answer tokens are not kept: %s", error)

    def forecast(self, claim: Claim) -> LengthForecast | None:
        """Tokens that a request is expected to think; None where no mark is known."""
        if not self.on:
            return None
        if claim.predicted_thinking_tokens is not None:
            return LengthForecast.point(claim.predicted_thinking_tokens)
        return self._history.of(claim.slo_class)

    def began(self, row: int, request: Any, now_s: float, decode_s: float) -> None:
        """Watch a newcomer."""
        if self.on:
            self._watched[request.request_id] = row, request, 0
            aim_at_answers(self._table, np.array([row]), now_s, decode_s)

    def look(self, now_s: float) -> None:
        """Stamp who has got a token after the mark."""
        if not self.on:
            return
        t = self._table
        for request_id, (row, request, read) in list(self._watched.items()):
            tokens = request.output_token_ids
            place = read
            while place < len(tokens) and tokens[place] != self._mark:
                place += 1
            if place + 1 < len(tokens):
                t.answer_s[row], t.thinking_tokens[row] = now_s, place + 1
                del self._watched[request_id]
            elif place > read:
                self._watched[request_id] = row, request, place

    def aim(self, snapshot: Snapshot) -> None:
        """Bring the limits that stand for those on first answer tokens up to date."""
        if self.on:
            aim_now(snapshot, np.concatenate([snapshot.waiting, snapshot.running]))

    def ended(self, row: int, request: Any, slo_class: str, *, whole: bool) -> float:
        """Learn from a request that leaves; returns the clock time of its first answer token.

        A whole answer without a mark did not think: its first token was its first answer token. NaN where
        that is not known.
        """
        t = self._table
        if not self.on:
            return math.nan
        self._watched.pop(request.request_id, None)
        if math.isfinite(t.answer_s[row]):
            self._history.observe(slo_class, int(t.thinking_tokens[row]))
            return float(t.answer_s[row])
        if request.num_output_tokens > 0:
            length = 1 if whole else request.num_output_tokens
            self._history.observe(slo_class, length, cut=not whole)
        return float(t.first_token_s[row]) if whole else math.nan
