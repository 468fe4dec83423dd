"""Traces of coding agents (kv-cache-tester): sessions of turns that reuse the prefix of the turn before."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slosched.core.errors import DataError
from slosched.core.table import Floats, Ints
from slosched.core.workload import Workload
from slosched.workloads.arrivals import first_arrivals
from slosched.workloads.files import csv_rows, moment, tokens, whole
from slosched.workloads.prefix import shared_prefix

AGENTIC_COLUMNS = ("session", "agent", "t_s", "input_tokens", "output_tokens", "reused_prefix_tokens")
READ_BLOCK_TOKENS = 512
"""Coarser than the 64 tokens the trace counts in, so that the whole file takes 100 MB; see `read_agentic`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Turns in the file's order, shape (n,) each; turns without output are left out.

    Parameters
    ----------
    session, agent
        Numbers of the session and of the agent within all sessions.
    t_s
        Seconds from the start of the session.
    prompt_tokens, output_tokens, reused_tokens
        Whole context, answer, and how much of the context the agent had sent before.
    silent
        Turns without output.
    """

    session: Ints
    agent: Ints
    t_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    reused_tokens: Ints
    silent: int

    def replay(self, rows: Ints, clock_s: Floats, *, block_tokens: int, name: str) -> Workload:
        """Some turns as a workload with shared prefixes, at the given times."""
        order = np.argsort(clock_s, kind="stable")
        rows, clock = rows[order], clock_s[order]
        prefix = shared_prefix(
            self.agent[rows], self.prompt_tokens[rows], self.reused_tokens[rows], block_tokens
        )
        note = f" ({self.silent} rows without output left out)" if self.silent else ""
        return Workload.plain(
            clock,
            self.prompt_tokens[rows],
            self.output_tokens[rows],
            name=name,
            prefix=prefix,
            source=f"kv-cache-tester agentic trace{note}, open loop",
        )


def read_turns(path: str | Path) -> Turns:
    """Turns of a file with the columns `AGENTIC_COLUMNS`.

    Raises
    ------
    DataError
        If a column is missing, a value is outside its domain, time falls within an agent, or no turn has
        output.
    """
    file = Path(path)
    sessions: dict[str, int] = {}
    agents: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], float] = {}
    session, agent, times = array("q"), array("q"), array("d")
    prompts, outputs, reused = array("q"), array("q"), array("q")
    silent = 0
    for row, fields in csv_rows(file, AGENTIC_COLUMNS):
        key = (fields["session"], fields["agent"])
        seconds = last[key] = moment(file, row, "t_s", fields["t_s"], last.get(key, 0.0))
        prompt = tokens(file, row, "input_tokens", fields["input_tokens"])
        domain = f"an integer from 0 to {prompt}, the input tokens"
        again = whole(file, row, "reused_prefix_tokens", fields["reused_prefix_tokens"], 0, prompt, domain)
        if fields["output_tokens"].strip() == "0":
            silent += 1
            continue
        outputs.append(tokens(file, row, "output_tokens", fields["output_tokens"]))
        session.append(sessions.setdefault(fields["session"], len(sessions)))
        agent.append(agents.setdefault(key, len(agents)))
        times.append(seconds)
        prompts.append(prompt)
        reused.append(again)
    if not times:
        raise DataError(file, None, "output_tokens", "above 0 in some row", 0)
    return Turns(
        session=np.asarray(session, dtype=np.int64),
        agent=np.asarray(agent, dtype=np.int64),
        t_s=np.asarray(times, dtype=np.float64),
        prompt_tokens=np.asarray(prompts, dtype=np.int64),
        output_tokens=np.asarray(outputs, dtype=np.int64),
        reused_tokens=np.asarray(reused, dtype=np.int64),
        silent=silent,
    )


def read_agentic(
    path: str | Path,
    *,
    block_tokens: int = READ_BLOCK_TOKENS,
    session_rate_per_s: float = 0.02,
    seed: int = 0,
) -> Workload:
    """Whole agentic trace, open loop: a turn comes at its recorded time even if the one before is late.

    Parameters
    ----------
    path
        File as for `read_turns`.
    block_tokens
        Grain of prefix sharing, at least 1: the reused prefix of a turn, rounded down to whole blocks, has
        the block ids of the turn before of the same agent.
    session_rate_per_s
        Sessions begin as a Poisson process of this rate, since the trace gives times within a session only.
    seed
        Seed of the session starts.
    """
    file = Path(path)
    turns = read_turns(file)
    starts = first_arrivals(int(turns.session.max()) + 1, session_rate_per_s, rng=np.random.default_rng(seed))
    times = turns.t_s + starts[turns.session]
    name = file.name.removesuffix(".gz").rsplit(".", 1)[0]
    return turns.replay(np.arange(len(times)), times - times.min(), block_tokens=block_tokens, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSample:
    """Some turns of a trace and when they come, in the order of sessions; `dropped` were too long."""

    rows: Ints
    clock_s: Floats
    dropped: int


def sample_turns(
    turns: Turns,
    *,
    requests: int,
    duration_s: float,
    longest_gap_s: float,
    longest_tokens: int,
    seed: int,
) -> TurnSample:
    """Turns of randomly chosen sessions that start at random times.

    Parameters
    ----------
    turns
        Trace.
    requests
        Turns wanted; fewer are given only if the whole trace holds fewer.
    duration_s
        All times are below this; later turns of a session are left out.
    longest_gap_s
        Longer pauses between turns are cut to this: the user went away.
    longest_tokens
        Turns with a longer prompt and answer are left out and counted.
    seed
        Seed of the choice.
    """
    rng = np.random.default_rng(seed)
    sessions = np.split(np.arange(len(turns.session)), np.flatnonzero(np.diff(turns.session)) + 1)
    rows: list[Ints] = []
    clocks: list[Floats] = []
    have = dropped = 0
    for pick in rng.permutation(len(sessions)).tolist():
        own = sessions[pick][np.argsort(turns.t_s[sessions[pick]], kind="stable")]
        gaps = np.minimum(np.diff(turns.t_s[own]), longest_gap_s)
        times = rng.random() * duration_s + np.concatenate([[0.0], np.cumsum(gaps)])
        total = turns.prompt_tokens[own] + turns.output_tokens[own]
        inside = times < duration_s
        dropped += int(np.sum(inside & (total > longest_tokens)))
        kept = np.flatnonzero(inside & (total <= longest_tokens))[: requests - have]
        rows.append(own[kept])
        clocks.append(times[kept])
        have += len(kept)
        if have >= requests:
            break
    return TurnSample(rows=np.concatenate(rows), clock_s=np.concatenate(clocks), dropped=dropped)
