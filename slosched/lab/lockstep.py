"""Searches that go on together: what all of them ask for next is run at once, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from slosched.lab.parallel import Interrupted, Progress

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Found = TypeVar("Found")


class Rounds:
    """Progress over rounds of runs: those done, of all that were asked for so far.

    Parameters
    ----------
    progress
        Called with (done, all); None for nobody.

    Examples
    --------
    >>> seen = []
    >>> rounds = Rounds(lambda *counts: seen.append(counts))
    >>> rounds(2, 2); rounds.end(); rounds(1, 3)
    >>> seen
    [(2, 2), (3, 5)]
    """

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.before, self.total = progress, 0, 0

    def __call__(self, done: int, total: int) -> None:
        """So many of this round's."""
        self.total = total
        if self.progress is not None:
            self.progress(self.before + done, self.before + total)

    def end(self) -> None:
        """The next round begins."""
        self.before, self.total = self.before + self.total, 0


def in_lockstep(
    searches: Sequence[Generator[Asked, Answer, Found]],
    answers: Callable[[list[tuple[int, Asked]]], list[Answer]],
) -> list[Found]:
    """What each search finds.

    Parameters
    ----------
    searches
        Generators that yield a question, are sent its answer, and return what they found.
    answers
        Answers the open questions, each given as (place of its search, question), in their order.

    Raises
    ------
    Interrupted
        At Ctrl-C; it holds what was found by then, by place.

    Examples
    --------
    >>> def halve(low, high):
    ...     while high - low > 1:
    ...         middle = (low + high) // 2
    ...         low, high = (low, middle) if (yield middle) else (middle, high)
    ...     return high
    >>> in_lockstep([halve(0, 64), halve(0, 8)], lambda asked: [x >= 5 for _, x in asked])
    [5, 5]
    """
    found: dict[int, Found] = {}
    asked: list[tuple[int, Asked]] = []

    def go_on(place: int, answer: Answer | None) -> None:
        """Give a search its answer; note what it asks next, or what it has found."""
        try:
            asked.append((place, searches[place].send(answer)))  # type: ignore[arg-type]  # None starts it
        except StopIteration as stop:
            found[place] = stop.value

    try:
        for place in range(len(searches)):
            go_on(place, None)
        while asked:
            answered = [(place, answer) for (place, _), answer in zip(asked, answers(asked), strict=True)]
            asked.clear()
            for place, answer in answered:
                go_on(place, answer)
    except KeyboardInterrupt:
        raise Interrupted(found) from None
    return [found[place] for place in range(len(searches))]
