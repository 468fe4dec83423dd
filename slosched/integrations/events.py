"""Server-sent events on their way through the proxy: whole lines, and how many tokens they bring."""

from __future__ import annotations

import re

LONGEST_LINE = 64 * 1024
"""Bytes of an unfinished line that are held back until it ends; a longer line goes on in parts."""

DATA = re.compile(rb"(?:^|[\r\n])data:(?! ?\[DONE\])")
"""A line of data other than the last mark."""

NO_TOKEN = re.compile(
    rb"event: ?(?:response\.(?:created|in_progress|queued)|message_start|ping)[\r\n]{1,2}data:"
)
"""Events that come before the first token, or beside tokens."""


class WholeLines:
    r"""Takes a stream as it comes and gives it on in whole lines, the same bytes.

    Where the stream breaks off, what is left is half a line, which is half an event for whoever reads it.

    Examples
    --------
    >>> lines = WholeLines()
    >>> lines.add(b"data: 1\n\nda"), lines.add(b"ta: [DONE]\n\n"), lines.rest()
    ((b'data: 1\n\n', 1), (b'data: [DONE]\n\n', 0), (b'', 0))
    """

    def __init__(self) -> None:
        self._rest = self._named = b""
        self._within = False  # the beginning of the unfinished line has been given on

    def add(self, piece: bytes) -> tuple[bytes, int]:
        """What can be given on, and the tokens in it."""
        rest = self._rest + piece
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
        if not end and len(rest) > LONGEST_LINE:
            end = len(rest)
        ready, self._rest = rest[:end], rest[end:]
        return ready, self._count(ready)

    def rest(self) -> tuple[bytes, int]:
        """What is left of a stream that has ended, and the tokens in it."""
        ready, self._rest = self._rest, b""
        return ready, self._count(ready)

    def _count(self, ready: bytes) -> int:
        if not ready:
            return 0
        found = len(DATA.findall(ready)) - len(NO_TOKEN.findall(self._named + ready))
        found -= self._within and ready.startswith(b"data:")
        last = ready.rstrip(b"\r\n").rpartition(b"\n")[2]
        self._within = not ready.endswith((b"\n", b"\r"))
        self._named = last + b"\n" if last.startswith(b"event:") else b""
        return max(0, found)
