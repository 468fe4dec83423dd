"""Families of requests by how long they are: one-shot prompts, and sessions whose context grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.workloads.lengths import LengthTable, fitted, from_quantiles

REASONING_MEDIAN_TOKENS, REASONING_SIGMA = 1200.0, 0.8
"""Answers with a chain of thought: lognormal, an assumption (no public trace of them is among our data)."""
SYSTEM_TOKENS = 4096
"""What every agent's first prompt begins with: instructions and tools, shared by all sessions."""
AGENT_TURNS, AGENT_CONTEXT_SHARE = 12.0, 0.1
"""Mean turns of an agent's session, and its first context as a share of the fitted trace's (median 20,000),
whose users keep whole repositories in context."""
TALK_TURNS, TALK_PAUSE_S = 5.0, 12.0
"""Mean turns of a conversation, and the mean pause of its user."""
LONGEST_PAUSE_S = 60.0
"""Longer pauses mean that the user went away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Lengths of n requests as turns of sessions, in order of session and turn; shapes (n,).

    Parameters
    ----------
    prompt_tokens, output_tokens
        Lengths, at least 1.
    session
        Which session a request belongs to, ascending; a one-shot request is a session of its own.
    turn
        Place in the session, from 0.
    pause_s
        Seconds between the end of the previous answer and this turn; 0 in a first turn.
    shared
        Whether prompts begin with the turn before (and the first with `common_tokens` that all share).
    common_tokens
        Tokens that all first prompts begin with.
    source
        Where the lengths come from.
    """

    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints
    turn: Ints
    pause_s: Floats
    shared: bool = False
    common_tokens: int = 0
    source: str = ""

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def reused_tokens(self) -> Ints:
        """Prompt tokens that an endless prefix cache has: the turn before, or what all begin with."""
        if not self.shared:
            return np.zeros(len(self), dtype=np.int64)
        before = np.concatenate([[0], self.prompt_tokens[:-1]])
        reused = np.where(self.turn == 0, self.common_tokens, before)
        return np.asarray(np.minimum(reused, self.prompt_tokens - 1), dtype=np.int64)


def one_shot(table: str) -> Callable[[int, int, np.random.Generator], Sessions]:
    """A family of single requests with the lengths of a `LengthTable`."""

    def draw(n: int, longest_tokens: int, rng: np.random.Generator) -> Sessions:
        law = LengthTable.named(table)
        prompt, output = law.draw(n, rng)
        return _single(prompt, output, law.source)

    return draw


def reasoning(n: int, longest_tokens: int, rng: np.random.Generator) -> Sessions:
    """Chat prompts with long chains of thought: lognormal answers of median 1,200 tokens and sigma .8."""
    law = LengthTable.named("chat")
    prompt, _ = law.draw(n, rng)
    answer = REASONING_MEDIAN_TOKENS * np.exp(REASONING_SIGMA * rng.standard_normal(n))
    return _single(prompt, np.rint(answer), f"prompts: {law.source}; answers: assumed lognormal")


def agents(n: int, longest_tokens: int, rng: np.random.Generator) -> Sessions:
    """Agents with tools: a long shared beginning, a context that grows, short answers, short pauses."""
    law = fitted()["agentic"]

    def grown(count: int) -> Floats:
        return from_quantiles(rng.random(count), law["new_tokens"])

    first = SYSTEM_TOKENS + AGENT_CONTEXT_SHARE * from_quantiles(rng.random(n), law["first_prompt_tokens"])
    output = from_quantiles(rng.random(n), law["output_tokens"])
    pause = from_quantiles(rng.random(n), law["think_s"])
    drawn = _sessions(first, grown(n), output, pause, AGENT_TURNS, longest_tokens, rng)
    return replace(drawn, common_tokens=SYSTEM_TOKENS, source=law["source"])


def multi_turn(n: int, longest_tokens: int, rng: np.random.Generator) -> Sessions:
    """Conversations: each prompt is the one before, its answer, and what the user writes next."""
    law = LengthTable.named("chat")
    said, answer = law.draw(n, rng)
    pause = rng.exponential(TALK_PAUSE_S, n)
    # The answer before belongs to the context too.
    grown = said + np.concatenate([[0], answer[:-1]])
    drawn = _sessions(said.astype(float), grown, answer.astype(float), pause, TALK_TURNS, longest_tokens, rng)
    return replace(drawn, source=law.source)


FAMILIES: dict[str, Callable[[int, int, np.random.Generator], Sessions]] = {
    "chat": one_shot("chat"),
    "conversation": one_shot("conversation"),
    "dialog": one_shot("dialog"),
    "code": one_shot("code"),
    "summaries": one_shot("summarization"),
    "documents": one_shot("documents"),
    "reasoning": reasoning,
    "agents": agents,
    "multi-turn": multi_turn,
}
"""Families by name: how to draw n requests of at most so many tokens."""


def draw_family(
    name: str, n: int, *, longest_tokens: int, answer_scale: float = 1.0, rng: np.random.Generator
) -> Sessions:
    """Lengths of n requests of a family.

    Parameters
    ----------
    name
        One of `FAMILIES`.
    n
        Requests, at least 0.
    longest_tokens
        Longest prompt and answer together, at least 2: longer answers, then longer prompts are cut.
    answer_scale
        Factor of the answers' lengths, above 0.
    rng
        Random stream.

    Examples
    --------
    >>> drawn = draw_family("agents", 500, longest_tokens=32_768, rng=np.random.default_rng(0))
    >>> len(drawn), bool((drawn.prompt_tokens + drawn.output_tokens).max() <= 32_768)
    (500, True)
    """
    require(name in FAMILIES, "family", "one of " + ", ".join(FAMILIES), name)
    require(n >= 0, "n", "an integer of at least 0", n)
    require(longest_tokens >= 2, "longest_tokens", "an integer of at least 2", longest_tokens)
    require(0 < answer_scale < np.inf, "answer_scale", "a finite number above 0", answer_scale)
    drawn = FAMILIES[name](n, longest_tokens, rng)
    output = np.clip(np.rint(drawn.output_tokens * answer_scale), 1, longest_tokens // 2).astype(np.int64)
    prompt = np.clip(drawn.prompt_tokens, 1, longest_tokens - output).astype(np.int64)
    return replace(drawn, prompt_tokens=prompt, output_tokens=output)


def _single(prompt: Ints, output: Floats | Ints, source: str) -> Sessions:
    n = len(prompt)
    return Sessions(
        prompt_tokens=prompt,
        output_tokens=np.maximum(1, output).astype(np.int64),
        session=np.arange(n),
        turn=np.zeros(n, dtype=np.int64),
        pause_s=np.zeros(n),
        source=source,
    )


def _sessions(
    first: Floats,
    grown: Floats,
    output: Floats,
    pause_s: Floats,
    mean_turns: float,
    longest_tokens: int,
    rng: np.random.Generator,
) -> Sessions:
    """Cut a row of turns into sessions: each turn is the last with chance 1 / `mean_turns`.

    A session also ends before its context passes half of `longest_tokens`.
    """
    n = len(first)
    ends = rng.random(n) < 1.0 / mean_turns
    prompt = np.zeros(n, dtype=np.int64)
    session = np.zeros(n, dtype=np.int64)
    turn = np.zeros(n, dtype=np.int64)
    most = longest_tokens // 2
    for i in range(n):
        context = float(prompt[i - 1]) + grown[i] if i else 0.0
        if i and not ends[i - 1] and context <= most:
            prompt[i], session[i], turn[i] = round(context), session[i - 1], turn[i - 1] + 1
        else:
            prompt[i], session[i] = min(max(1, round(float(first[i]))), most), session[i - 1] + 1 if i else 0
    return Sessions(
        prompt_tokens=prompt,
        output_tokens=np.maximum(1, np.rint(output)).astype(np.int64),
        session=session,
        turn=turn,
        pause_s=np.where(turn == 0, 0.0, np.minimum(pause_s, LONGEST_PAUSE_S)),
        shared=True,
    )
