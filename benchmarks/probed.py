"""What a probe said along real answers, carried over to requests of other lengths and put before a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Floats, Ints

PROBED_EVERY = 8
"""Tokens after which a probe is asked again."""


class Probed:
    """What a probe said along real answers that it had not learned from, carried over to other lengths.

    Parameters
    ----------
    folder
        Hidden states, see ``slosched collect``.
    seed
        Of the answers learned from, and of the training.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from slosched.predictors.probe_training import Settings, replay, train_probe
        from slosched.predictors.states import load_states

        states = load_states(folder)
        order = np.random.default_rng((seed, 9)).permutation(len(states.names))
        tests = len(order) // 4
        test = states.select(np.sort(order[:tests]))
        probe, _ = train_probe(
            states.select(np.sort(order[tests:])), Settings(every_tokens=PROBED_EVERY, seed=seed)
        )
        said = replay(probe, test)[2]
        first = probe.atoms([b for b in probe.begin(test.prompt_states) if b is not None])
        self.lengths = test.output_tokens
        longest = float(self.lengths.max())
        self.said: list[tuple[Floats, Floats]] = []
        for i in range(tests):
            rows = np.flatnonzero((test.request == i) & ~np.isnan(said[:, 0]))
            rows = rows[np.argsort(test.generated_tokens[rows])]
            places = np.concatenate([[0.0], test.generated_tokens[rows].astype(np.float64)])
            self.said.append((places, np.minimum(np.vstack([first[i : i + 1], said[rows]]), longest)))

    def along(self, tokens: Ints, rng: np.random.Generator) -> list[tuple[Floats, Floats]]:
        """Of each request of a class, tokens at which something is said, and the atoms said there."""
        drawn = rng.integers(len(self.lengths), size=len(tokens))
        answer = by_rank(tokens, drawn, self.lengths[drawn], rng)
        move = carried(self.lengths, tokens)
        return [
            (move(places), np.maximum(move(atoms), 1.0))
            for places, atoms in (self.said[i] for i in answer.tolist())
        ]


def by_rank(tokens: Ints, drawn: Ints, lengths: Ints, rng: np.random.Generator) -> Ints:
    """For each request the thing drawn whose length has the same rank; ties are broken at random."""
    found = np.empty(len(tokens), dtype=np.int64)
    order = np.lexsort((rng.random(len(tokens)), lengths))
    found[np.lexsort((rng.random(len(tokens)), tokens))] = drawn[order]
    return found


def carried(source: Ints, target: Ints) -> Callable[[Floats], Floats]:
    """Moves lengths of one set to the lengths with the same quantiles in another; 0 stays 0."""
    places = np.linspace(0, 1, 200)
    here, there = (np.quantile(np.log(v.astype(np.float64)), places) for v in (source, target))
    here = here + 1e-9 * np.arange(len(here))  # ascending where lengths are equal

    def move(lengths: Floats) -> Floats:
        """Below the shortest and beyond the longest in proportion."""
        known = np.log(np.maximum(lengths, 1e-9))
        beyond = known - np.clip(known, here[0], here[-1])
        return np.asarray(np.exp(np.interp(known, here, there) + beyond))

    return move


class Asked:
    """Put before a policy: a probe tells of the answers that have begun, at every eighth token."""

    def follow(self, said: Sequence[tuple[Floats, Floats]]) -> None:
        """What it will say of each request."""
        self._along = said
        self._last: dict[int, int] = {}

    def plan(self, snapshot: Any) -> Any:
        """Take up what is new, then plan."""
        t = snapshot.table
        for row in snapshot.running.tolist():
            tokens = int(t.generated_tokens[row])
            if tokens < 1 or tokens // PROBED_EVERY == self._last.get(row, -1):
                continue
            self._last[row] = tokens // PROBED_EVERY
            places, atoms = self._along[row]
            said = atoms[max(0, int(np.searchsorted(places, tokens, side="right")) - 1)]
            t.atoms[row] = np.maximum(said, tokens + 1.0)
            getattr(self, "probed", set()).add(row)
        return super().plan(snapshot)  # type: ignore[misc]


def asked(policy: Any, said: Sequence[tuple[Floats, Floats]]) -> Any:
    """The policy with a probe before it."""
    kind: Any = type(f"Asked{type(policy).__name__}", (Asked, type(policy)), {"static": False})
    made = kind.__new__(kind)
    made.__dict__.update(policy.__dict__)
    made.follow(said)
    return made
