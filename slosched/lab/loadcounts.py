"""How requests ended at the client, each with its reason, and how exact the client's clock was."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from slosched.core.arrays import Floats
from slosched.integrations.openai_stream import CUT_OFF, FAILED, FINISHED, REFUSED, Answer

HUNG_UP, TIMED_OUT, INTERRUPTED, NOT_SENT = "hung up", "timed out", "interrupted", "not sent"
"""Further ends: the client hung up on purpose, gave up, was stopped in the middle, or never sent it."""

LATE_S = 0.1
"""A client later than this, with a request or with its own clock, measures itself beside the server."""


@dataclass(slots=True)
class LoadCounts:
    """How requests ended; the numbers add up to `requests`.

    Parameters
    ----------
    requests
        Of the workload.
    finished
        Whole answers.
    aborted
        Clients that hung up on purpose.
    timeouts
        Given up after the time-out.
    refused, cut_off, errors
        By reason: not taken or answered with nothing; broken off by the server; connection or form at fault.
    interrupted
        In flight when the run was stopped.
    not_sent
        Never sent, by reason.
    details
        By reason, what the server said the first time.
    retries
        Times that a request was sent again after the server had said when.
    odd_events
        Events in streams that were passed over.
    short
        Finished answers of another length than was asked for.
    counted
        Finished answers by what the count of their tokens rests on, see `Answer.counted`.
    latest_send_s, late_p99_s, late_mean_s
        How late requests were sent after they were due: the most, the 99th percentile, the mean.
    stall_max_s, stall_p99_s
        How long the client's event loop was held up, so that tokens were stamped late.
    """

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    timeouts: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    cut_off: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    interrupted: int = 0
    not_sent: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    retries: int = 0
    odd_events: int = 0
    short: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    latest_send_s: float = 0.0
    late_p99_s: float = 0.0
    late_mean_s: float = 0.0
    stall_max_s: float = 0.0
    stall_p99_s: float = 0.0

    @property
    def total(self) -> int:
        """Requests whose end is known."""
        plain = self.finished + self.aborted + self.timeouts + self.interrupted
        return plain + sum(
            sum(by.values()) for by in (self.refused, self.cut_off, self.errors, self.not_sent)
        )

    @property
    def late(self) -> bool:
        """Whether the client was so late that its figures say more of this machine than of the server."""
        return max(self.late_p99_s, self.stall_p99_s) > LATE_S

    def add(self, answer: Answer, asked_tokens: int) -> None:
        """Count the end of one request."""
        self.retries += answer.retries
        self.odd_events += answer.odd_events
        if answer.detail:
            self.details.setdefault(answer.reason, answer.detail)
        if answer.outcome == FINISHED:
            self.finished += 1
            self.short += answer.tokens != asked_tokens
            self.counted[answer.counted] = self.counted.get(answer.counted, 0) + 1
        elif answer.outcome == HUNG_UP:
            self.aborted += 1
        elif answer.outcome == TIMED_OUT:
            self.timeouts += 1
        elif answer.outcome == INTERRUPTED:
            self.interrupted += 1
        else:
            by = {REFUSED: self.refused, CUT_OFF: self.cut_off, FAILED: self.errors, NOT_SENT: self.not_sent}
            reasons = by[answer.outcome]
            reasons[answer.reason] = reasons.get(answer.reason, 0) + 1

    def clocks(self, late_s: Floats, stall_s: Floats) -> None:
        """Note how late requests were sent, and how long the event loop was held up."""
        if len(late_s):
            self.latest_send_s = float(late_s.max())
            self.late_p99_s = float(np.quantile(late_s, 0.99))
            self.late_mean_s = float(late_s.mean())
        if len(stall_s):
            self.stall_max_s = float(stall_s.max())
            self.stall_p99_s = float(np.quantile(stall_s, 0.99))

    def sentences(self) -> str:
        """What happened, for a user."""
        ends = [f"{self.finished} finished"]
        for number, words in (
            (self.aborted, "hung up on purpose"), (self.timeouts, "timed out"),
            (self.interrupted, "in flight when the run was stopped"),
        ):  # fmt: skip
            ends += [f"{number} {words}"] if number else []
        for by, words in (
            (self.refused, "refused"), (self.cut_off, "cut off"), (self.errors, "failed"),
            (self.not_sent, "not sent"),
        ):  # fmt: skip
            ends += [f"{n} {words} ({self._reason(reason)})" for reason, n in sorted(by.items())]
        parts = [f"Client: of {self.requests} requests {', '.join(ends)}"]
        if self.retries:
            parts.append(f"{self.retries} sent again when the server had said (Retry-After)")
        if self.short:
            parts.append(f"{self.short} answers of another length than asked for")
        if self.odd_events:
            parts.append(f"{self.odd_events} odd events passed over")
        guessed = sum(n for how, n in self.counted.items() if how == "chunks")
        if guessed:
            parts.append(
                f"tokens of {guessed} answers counted as one a chunk, since the server gave no count"
            )
        parts.append(
            f"sent at most {1000 * self.latest_send_s:.0f} ms late (p99 {1000 * self.late_p99_s:.0f} ms), "
            f"stamps at most {1000 * self.stall_max_s:.0f} ms late (p99 {1000 * self.stall_p99_s:.0f} ms)"
        )
        late = " The client was late: these figures say more of this machine than of the server."
        return "; ".join(parts) + "." + (late if self.late else "")

    def _reason(self, reason: str) -> str:
        detail = self.details.get(reason)
        return f"{reason}: {detail}" if detail else reason
