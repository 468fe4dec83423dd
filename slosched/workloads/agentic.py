"""Traces of coding agents (kv-cache-tester): sessions of turns that reuse the prefix of the turn before.

Replay is closed loop: an agent sends its next turn when the answer before has ended and it has thought for
as long as recorded. Each agent of a session is a loop of its own; a sub-agent starts when it did in the
record.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import DataError
from slosched.core.reading import Table, open_table
from slosched.core.workload import Workload
from slosched.workloads.arrivals import first_arrivals
from slosched.workloads.fields import MOST_SECONDS, moment, number, tokens, whole
from slosched.workloads.generic import plain_stem
from slosched.workloads.prefix import shared_prefix

AGENTIC_COLUMNS = ("session", "agent", "t_s", "input_tokens", "output_tokens", "reused_prefix_tokens")
LOOP_COLUMNS = ("api_time_s", "think_time_s")
"""Recorded seconds of an answer, and from the answer before to this turn; without them an open loop."""
READ_BLOCK_TOKENS = 512
"""Coarser than the 64 tokens the trace counts in, so that the whole file takes 100 MB; see `read_agentic`."""
SESSIONS_PER_S = 0.02
"""Sessions begin as a Poisson process of this rate: the trace gives times within a session only."""


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
    think_s
        Seconds from the end of the same agent's answer before to this turn; -1 where not recorded.
    silent
        Turns without output.
    """

    session: Ints
    agent: Ints
    t_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    reused_tokens: Ints
    think_s: Floats
    silent: int

    def replay(
        self, rows: Ints, clock_s: Floats, *, block_tokens: int, name: str, longest_think_s: float = np.inf
    ) -> Workload:
        """Some turns as a workload with shared prefixes, at the given times, longer pauses cut."""
        order = np.argsort(clock_s, kind="stable")
        rows, clock = rows[order], clock_s[order]
        prefix = shared_prefix(
            self.agent[rows], self.prompt_tokens[rows], self.reused_tokens[rows], block_tokens
        )
        loop = "open loop" if (self.think_s < 0).all() else "closed loop"
        note = f" ({self.silent} rows without output left out)" if self.silent else ""
        return Workload.plain(
            clock,
            self.prompt_tokens[rows],
            self.output_tokens[rows],
            name=name,
            session=self.agent[rows],
            think_s=np.minimum(self.think_s[rows], longest_think_s),
            prefix=prefix,
            source=f"kv-cache-tester agentic trace{note}, {loop}",
        )


def read_turns(source: str | Path | Table) -> Turns:
    """Turns of a file, or a table that is open: `AGENTIC_COLUMNS` and, for a closed loop, `LOOP_COLUMNS`.

    A pause that is blank in the file is what the clock says, less the answer before if its time is known.

    Raises
    ------
    DataError
        If a column is missing, a value is outside its domain, time falls within an agent, or no turn has
        output.
    """
    table = source if isinstance(source, Table) else open_table(source)
    file = table.path
    sessions: dict[str, int] = {}
    agents: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], float] = {}
    answered: dict[tuple[str, str], float] = {}
    session, agent, times, thinks = array("q"), array("q"), array("d"), array("d")
    prompts, outputs, reused = array("q"), array("q"), array("q")
    silent = 0
    for row, fields in table.rows(AGENTIC_COLUMNS, LOOP_COLUMNS):
        key = (str(fields["session"]), str(fields["agent"]))
        seconds = last[key] = moment(file, row, "t_s", fields["t_s"], last.get(key, 0.0))
        think, api = (_seconds(file, row, name, fields.get(name)) for name in LOOP_COLUMNS[::-1])
        if np.isnan(think) and "think_time_s" in fields:
            think = max(0.0, seconds - answered.get(key, seconds))
        answered[key] = seconds + (0.0 if np.isnan(api) else api)
        prompt = tokens(file, row, "input_tokens", fields["input_tokens"])
        domain = f"an integer from 0 to {prompt}, the input tokens"
        again = whole(file, row, "reused_prefix_tokens", fields["reused_prefix_tokens"], 0, prompt, domain)
        if str(fields["output_tokens"]).strip() == "0":
            silent += 1
            continue
        outputs.append(tokens(file, row, "output_tokens", fields["output_tokens"]))
        session.append(sessions.setdefault(key[0], len(sessions)))
        agent.append(agents.setdefault(key, len(agents)))
        times.append(seconds)
        thinks.append(-1.0 if np.isnan(think) else think)
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
        think_s=np.asarray(thinks, dtype=np.float64),
        silent=silent,
    )


def _seconds(file: Path, row: int, name: str, value: object) -> float:
    """A recorded duration; NaN where blank or absent."""
    if value is None or value == "":
        return float("nan")
    return number(file, row, name, value, 0.0, MOST_SECONDS, "a number of seconds of at least 0, or empty")


def read_agentic(
    source: str | Path | Table,
    *,
    block_tokens: int = READ_BLOCK_TOKENS,
    seed: int = 0,
) -> Workload:
    """Whole agentic trace; `Workload.open_loop` of it sends every turn at its recorded time.

    Parameters
    ----------
    source
        As for `read_turns`.
    block_tokens
        Grain of prefix sharing, at least 1: the reused prefix of a turn, rounded down to whole blocks, has
        the block ids of the turn before of the same agent.
    seed
        Seed of the session starts.
    """
    table = source if isinstance(source, Table) else open_table(source)
    turns = read_turns(table)
    starts = first_arrivals(int(turns.session.max()) + 1, SESSIONS_PER_S, rng=np.random.default_rng(seed))
    times = turns.t_s + starts[turns.session]
    clock_s, name = times - times.min(), plain_stem(table.path)
    return turns.replay(np.arange(len(times)), clock_s, block_tokens=block_tokens, name=name)


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
