"""Colours and order of policies in pictures: ours always strong, baselines muted, safe for colour-blind eyes.

Hues are those of Okabe and Ito ("Color Universal Design", 2008), the baselines' mixed with white.
"""

from __future__ import annotations

from dataclasses import dataclass

from slosched.lab.comparison import OURS, REFERENCE, Comparison

MET, MISSED, WAIT = "#009E73", "#D55E00", "#C9C9C9"
"""A request that kept its limits, one that did not, and time spent waiting."""

INK, FAINT = "#222222", "#CCCCCC"

_STRONG = "#0072B2"
_MUTED = ("#E08A4F", "#4DB89A", "#C893B6", "#B8A62E")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (7, 1.5)))
HIGHLIGHTS = 4
"""Baselines, beside first come, first served, that get a colour of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How one policy is drawn; `label` is empty for those that form the grey crowd."""

    policy: str
    label: str
    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    width: float
    layer: int


def lines(comparison: Comparison) -> list[Line]:
    """How to draw each policy, drawing order first to last: crowd, baselines, ours on top.

    Named are ours, first come, first served, and the `HIGHLIGHTS` best of the others.
    """
    ranked = comparison.policies
    named = [p for p in ranked if p not in (OURS, REFERENCE)][:HIGHLIGHTS]
    drawn = []
    for policy in reversed(ranked):
        if policy == OURS:
            drawn.append(Line(policy=policy, label=policy, colour=_STRONG, dash="-", width=2.8, layer=5))
        elif policy == REFERENCE:
            drawn.append(Line(policy=policy, label=policy, colour="#444444", dash="-", width=1.4, layer=4))
        elif policy in named:
            i = named.index(policy)
            colour, dash = _MUTED[i % len(_MUTED)], _DASHES[i % len(_DASHES)]
            drawn.append(Line(policy=policy, label=policy, colour=colour, dash=dash, width=1.6, layer=3))
        else:
            drawn.append(Line(policy=policy, label="", colour=FAINT, dash="-", width=0.8, layer=2))
    return sorted(drawn, key=lambda line: line.layer)


def spaced(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart, within `low` to `high` as far as they fit.

    Examples
    --------
    >>> spaced([0.50, 0.51, 0.90], gap=0.1, low=0.0, high=1.0)
    [0.45..., 0.55..., 0.9]
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    groups: list[tuple[float, list[int]]] = []
    for i in order:
        groups.append((wanted[i], [i]))
        # Labels that would touch become one block, centred on the mean of what its members wanted.
        while len(groups) > 1 and _foot(groups[-1], gap) < _head(groups[-2], gap) + gap - 1e-12:
            (_, upper), (_, lower) = groups.pop(), groups.pop()
            members = lower + upper
            groups.append((sum(wanted[j] for j in members) / len(members), members))
    placed = [0.0] * len(wanted)
    for centre, members in groups:
        height = gap * (len(members) - 1)
        foot = max(low, min(high - height, centre - height / 2))
        for k, j in enumerate(members):
            placed[j] = foot + k * gap
    return placed


def _foot(group: tuple[float, list[int]], gap: float) -> float:
    return group[0] - gap * (len(group[1]) - 1) / 2


def _head(group: tuple[float, list[int]], gap: float) -> float:
    return group[0] + gap * (len(group[1]) - 1) / 2
