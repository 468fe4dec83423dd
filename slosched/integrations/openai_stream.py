"""What comes back from a streamed request: tokens, when they came, and how it ended."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

FINISHED, REFUSED, CUT_OFF, FAILED = "finished", "refused", "cut off", "failed"
"""How a request ends: its whole answer came; the server did not take it, or answered with nothing; the server
broke the answer off; or the connection or the answer's form was at fault."""

BROKEN_REASONS = ("abort", "aborted", "error", "cancelled", "canceled")
"""Finish reasons that do not mean that the answer ended."""

DONE = "[DONE]"
"""Data of the event that ends a stream."""

MOST_COUNT = 10_000_000
"""Tokens of one answer or prompt that a server's count is believed up to, as in workload files."""

MOST_LINE = 16 * 2**20
"""Bytes of one event that are read, far more than the longest answer has: beyond, nobody could hold it."""

MOST_WORDS = 100
"""Characters of a server's message that a reason keeps."""


@dataclass(slots=True)
class Answer:
    """What came back from one streamed request; filled while it comes, so that a part is kept.

    Parameters
    ----------
    status
        HTTP status, 0 before there is one.
    outcome, reason
        `FINISHED`, `REFUSED`, `CUT_OFF` or `FAILED`, and why in a few words; "" while it still comes.
    detail
        What the server said about it, cut short.
    finish_reason
        The server's own.
    first_s, last_s
        Clock at the first and the last token that came; NaN if none did.
    tokens
        Tokens that came.
    answer_s
        Clock at the first answer token, the first one after thinking; NaN where no end of thinking was seen.
    thought
        Whether thinking was seen: reasoning apart from the content, the mark, or `Stamps.think_tokens`.
    first_tokens
        Of these, the ones that came in the same event as the first.
    counted
        What the count rests on: ``usage`` (the server's count), ``events`` (token ids or log-probabilities),
        ``length`` (all that were asked for, as the finish reason says) or ``chunks`` (one token each).
    prompt_tokens
        The server's count, if it gave one.
    odd_events
        Events that could not be understood and were passed over.
    retries
        Times that the request was sent again after the server had said when.
    """

    status: int = 0
    outcome: str = ""
    reason: str = ""
    detail: str = ""
    finish_reason: str | None = None
    first_s: float = math.nan
    last_s: float = math.nan
    tokens: int = 0
    first_tokens: int = 0
    answer_s: float = math.nan
    thought: bool = False
    counted: str = ""
    prompt_tokens: int | None = None
    odd_events: int = 0
    retries: int = 0

    def end(self, outcome: str, reason: str = "", detail: str = "") -> None:
        """Note how it ended, unless that is known already."""
        if not self.outcome:
            self.outcome, self.reason, self.detail = outcome, printable(reason), printable(detail)


def judge(answer: Answer, ended: bool) -> None:
    """How a stream ended that was read to its end."""
    if answer.finish_reason in BROKEN_REASONS:
        answer.end(CUT_OFF if answer.tokens else REFUSED, f"finish_reason {answer.finish_reason}")
    elif answer.tokens == 0:
        answer.end(REFUSED, "empty answer")
    elif answer.finish_reason is not None or ended:
        answer.end(FINISHED)
    else:
        answer.end(CUT_OFF, "the stream ended early")


@dataclass(frozen=True, slots=True)
class EndOfThinking:
    """How the end of thinking is told in a stream: servers that part reasoning from content show it
    themselves; else by a mark in the text, or, where a length is forced, by the count of tokens.
    """

    mark: str = "</think>"
    tokens: int | None = None


@dataclass(slots=True)
class Stamps:
    """When which tokens of one answer came."""

    answer: Answer
    on_first: Callable[[], None] | None
    end: EndOfThinking = EndOfThinking()
    usage: int | None = None
    exact: int = 0
    """Tokens counted by usage, ids or log-probabilities, event by event."""
    inexact: int = 0
    """Events with text whose tokens are not known."""
    apart: bool = False
    """Whether the server parts thinking from the answer."""
    tail: str = ""
    """Latest text, in which the mark is looked for."""
    characters: int = 0
    first_characters: int = 0
    silent_s: list[float] = field(default_factory=list)
    """First and last event without text, in case tokens have none."""

    def take(self, event: dict[str, Any], now: float) -> None:
        """Note one event."""
        answer = self.answer
        error = event.get("error") or (event if event.get("object") == "error" else None)
        if error:
            outcome = CUT_OFF if math.isfinite(answer.first_s) else FAILED
            answer.end(outcome, "error event", words_of(error))
            return
        counted = self._usage(event.get("usage"))
        if self.inexact:
            counted = None  # a sum at the end, not a count of this event
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            if counted is None and choices != []:
                answer.odd_events += 1
            return
        choice = choices[0]
        if not isinstance(choice, dict):
            answer.odd_events += 1
            return
        if choice.get("finish_reason"):  # some servers send an empty one in every event
            answer.finish_reason = str(choice["finish_reason"])
        said, thoughts = _text_of(choice), _thoughts_of(choice)
        text, tokens = said + thoughts, counted
        if tokens == 0 and text and not self.exact:
            tokens = None  # some servers count 0 until the end
        if tokens is None:
            tokens = _tokens_of(choice)
        if tokens is None and not text:
            self.silent_s[1:] = [now]
        elif tokens is None:
            self._stamp(now, text)
            self.inexact += 1
        elif tokens > 0:
            answer.first_tokens = tokens if math.isnan(answer.first_s) else answer.first_tokens
            self._stamp(now, text)
            self.exact += tokens
        answer.tokens = self.exact + self.inexact
        if math.isnan(answer.answer_s) and answer.tokens:
            self._look(said, bool(thoughts), now)

    def _look(self, said: str, thinks: bool, now: float) -> None:
        """Note the first answer token if this event holds it."""
        answer = self.answer
        if self.end.tokens is not None:
            answer.thought = self.end.tokens > 0
            if answer.tokens > self.end.tokens:
                answer.answer_s = now
            return
        if thinks:
            self.apart = answer.thought = True
        if self.apart:
            if said:
                answer.answer_s = now
            return
        self.tail += said
        _, mark, after = self.tail.partition(self.end.mark)
        if mark:
            answer.thought = True
            if after:
                answer.answer_s = now
        else:
            self.tail = self.tail[-len(self.end.mark) - 256 :]

    def _stamp(self, now: float, text: str) -> None:
        answer = self.answer
        self.characters += len(text)
        if math.isnan(answer.first_s):
            answer.first_s = now
            self.first_characters = len(text)
            if self.on_first is not None:
                self.on_first()
        answer.last_s = now

    def _usage(self, usage: object) -> int | None:
        """New tokens since the event before, as the server counts; None if it does not say."""
        if not isinstance(usage, dict):
            return None
        if _is_count(usage.get("prompt_tokens")):
            self.answer.prompt_tokens = usage["prompt_tokens"]
        now = usage.get("completion_tokens")
        if not isinstance(now, int) or not _is_count(now):
            return None
        before, self.usage = self.usage or 0, now
        return max(0, now - before)

    def count(self, asked: int | None) -> None:
        """The tokens of the whole answer, from the best evidence there is."""
        answer = self.answer
        chunks = self.inexact
        if self.usage is not None and self.usage > 0:
            answer.tokens, answer.counted = self.usage, "usage"
        elif chunks == 0:
            answer.tokens, answer.counted = self.exact, "events"
        elif answer.finish_reason == "length" and asked is not None and asked >= self.exact + chunks:
            answer.tokens, answer.counted = asked, "length"
        else:
            answer.tokens, answer.counted = self.exact + chunks, "chunks"
        if answer.tokens and math.isnan(answer.first_s) and self.silent_s:
            # Every token is without text, such as special tokens: then the events themselves are the stamps.
            answer.first_s, answer.last_s = self.silent_s[0], self.silent_s[-1]
        if answer.tokens and not answer.first_tokens:
            share = self.first_characters / self.characters if self.characters else 0.0
            alone = answer.tokens == self.exact + chunks or chunks == 0
            answer.first_tokens = 1 if alone else max(1, round(answer.tokens * share))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNT


def _text_of(choice: dict[str, Any]) -> str:
    """Text of a choice of a completion or a chat completion, tool calls included, reasoning not."""
    parts = [choice.get("text")]
    for part in ("delta", "message"):
        if isinstance(delta := choice.get(part), dict):
            parts += [_joined(delta.get("content")), delta.get("refusal")]
            parts += [json.dumps(delta[name]) for name in ("tool_calls", "function_call") if delta.get(name)]
    return "".join(part for part in parts if isinstance(part, str))


def _joined(content: object) -> object:
    """Content that a server sends in parts, as one text."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _thoughts_of(choice: dict[str, Any]) -> str:
    """Reasoning of a choice, from a server that parts it from the content."""
    parts = []
    for name in ("delta", "message"):
        if isinstance(delta := choice.get(name), dict):
            parts += [delta.get(key) for key in ("reasoning_content", "reasoning")]
    return "".join(part for part in parts if isinstance(part, str))


def _tokens_of(choice: dict[str, Any]) -> int | None:
    """Tokens of a choice that lists them; None for one that does not, or whose list is always empty."""
    chances = choice.get("logprobs")
    chances = chances if isinstance(chances, dict) else {}
    for listed in (choice.get("token_ids"), chances.get("tokens"), chances.get("content")):
        if isinstance(listed, list) and listed:
            return len(listed)
    return None


async def events(packets: AsyncIterable[bytes]) -> AsyncIterator[object]:
    """JSON of the server-sent events in packets of bytes, and `DONE`; None for one that is not JSON.

    A stream that begins with JSON holds no such events: each of its lines is one. An event's data may span
    lines, and lines may span packets; a line that is JSON by itself is an event even if no blank line
    follows, as some servers send it. Comments and other fields are passed over. A line may end with a line
    feed, a carriage return, or both.

    Raises
    ------
    ValueError
        If an event is longer than `MOST_LINE`.
    """
    parts: list[bytes] = []  # of a line that has not ended; joined once, since it may be long
    size = 0
    pending: list[str] = []
    bare: bool | None = None  # unknown before the first byte that says something
    returned = False  # whether the last packet ended with a carriage return
    async for packet in packets:
        if returned:
            packet = packet.removeprefix(b"\n")
            returned = False
        if not packet:
            continue
        if bare is None:
            packet = (b"".join(parts) + packet).removeprefix(codecs.BOM_UTF8).lstrip()
            parts, size = [], 0
            bare = packet.startswith(b"{") if packet else None
        returned = packet.endswith(b"\r")
        if b"\r" in packet:
            packet = packet.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = packet.split(b"\n")
        for line in lines:
            for event in _event(b"".join([*parts, line]), pending, bare=bool(bare)):
                yield event
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size + sum(map(len, pending)) > MOST_LINE:
            raise ValueError(f"an event of more than {MOST_LINE} bytes")
    for line in (b"".join(parts), b""):
        for event in _event(line, pending, bare=bool(bare)):
            yield event


def _event(line: bytes, pending: list[str], *, bare: bool) -> list[object]:
    """Events that a line completes; what it does not complete is appended to `pending`."""
    if bare and line and not line.startswith(b"data:"):
        line = b"data:" + line
    if not line:
        odd: list[object] = [None] if pending else []
        pending.clear()
        return odd
    if not line.startswith(b"data:"):
        return []
    own = line[5:].decode("utf-8", errors="replace").strip()
    if not pending or pending[0][:1] in ("{", "["):  # nothing else goes on over lines
        pending.append(own)
        if (event := _read("\n".join(pending))) is not None:
            pending.clear()
            return event
    if pending[0] != own and (alone := _read(own)) is not None and _whole(alone[0]):
        pending.clear()  # what was begun before is broken: this line has nothing to do with it
        return [None, *alone]
    return []


def _read(data: str) -> list[object] | None:
    """The event that some data are, alone in a list; None if they are none, or not all of one."""
    try:
        return [DONE if data == DONE else json.loads(data)]
    except (ValueError, RecursionError):
        return None


def _whole(event: object) -> bool:
    """Whether this can only be an event of its own, not a line of another that spans several."""
    return event == DONE or (isinstance(event, dict) and not event.keys().isdisjoint(("choices", "error")))


def printable(text: str) -> str:
    """A server's words, made harmless: half characters end a report, control characters change a terminal.

    Examples
    --------
    >>> printable(f"busy{chr(27)}[2J")
    'busy�[2J'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def words_of(error: object) -> str:
    """What a server says about an error, cut short."""
    if isinstance(error, dict):
        error = next((error[name] for name in ("message", "detail", "type") if error.get(name)), error)
    return " ".join(str(error).split())[:MOST_WORDS]
