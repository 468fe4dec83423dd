"""Searches that go on together: what all of them ask for next is run at once, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from slosched.lab.parallel import Interrupted, Progress

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Found = TypeVar("Found")


def in_lockstep(
    searches: Sequence[Generator[Asked, Answer, Found]],
    answers: Callable[[list[tuple[int, Asked]]], list[Answer]],
    progress: Progress | None = None,
) -> list[Found]:
    """What each search finds.

    Parameters
    ----------
    searches
        Generators that yield a question, are sent its answer, and return what they found.
    answers
        Answers the open questions, each given as (place of its search, question), in their order.
    progress
        Called with (searches that ended, all).

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
        try:
            asked.append((place, searches[place].send(answer)))  # type: ignore[arg-type]  # None starts it
        except StopIteration as stop:
            found[place] = stop.value
            if progress is not None:
                progress(len(found), len(searches))

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
