"""What engines tell the front process: their outlook for a newcomer, in a file of each rank."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from slosched.core.errors import InputError
from slosched.integrations.vllm.waits import Outlook

STALE_S = 5.0
"""Age from which nobody believes an outlook: 50 times the usual interval, so the engine hangs or is gone."""

NAME = re.compile(r"^engine-(\d+)\.rank(\d+)\.json$")


@dataclass(frozen=True, slots=True)
class Told:
    """The outlook of one rank, its process, when it was told (monotonic clock), whether the engine ends."""

    rank: int
    pid: int
    time_s: float
    ending: bool
    outlook: Outlook

    @property
    def dead(self) -> bool:
        """Whether the engine's process is gone, or waits for nothing but its parent to notice."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except OSError:
                return False
            return False
        return state in ("Z", "X")

    @property
    def fresh(self) -> bool:
        """Whether it is recent enough to act on."""
        return 0.0 <= time.monotonic() - self.time_s <= STALE_S


def folder_for(configured: Path | None) -> Path:
    """The folder that engines and front process share; made if need be, readable by this user only.

    Raises
    ------
    InputError
        If it cannot be made, or is another user's: what is in it could not be believed.
    """
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    path = configured or base / f"slosched-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise InputError(
            f"admission.folder must be a folder that can be made, got {str(path)!r}: {error}."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(f"admission.folder must be a folder of this user, got {str(path)!r}.")
    return path


def tell(folder: Path, server: int, rank: int, outlook: Outlook, *, ending: bool = False) -> None:
    """Publish an engine's outlook, in one move.

    Parameters
    ----------
    folder
        As of `folder_for`.
    server
        Process that started the engine: the API server, or the parent of several.
    rank, outlook, ending
        What is told.
    """
    content = {
        "rank": rank, "pid": os.getpid(), "time_s": time.monotonic(), "ending": ending,
        "outlook": asdict(outlook),
    }  # fmt: skip
    path = folder / f"engine-{server}.rank{rank}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def sweep(folder: Path) -> None:
    """Remove what engines of processes that are gone have left."""
    for path in folder.iterdir():
        match = NAME.match(path.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except OSError:
            continue


def told(folder: Path, servers: tuple[int, ...]) -> list[Told]:
    """What the engines of a server have told last, by rank; not all of it is `Told.fresh`."""
    found = []
    for server in servers:
        for path in sorted(folder.glob(f"engine-{server}.rank*.json")):
            try:
                content = json.loads(path.read_text())
                one = Told(
                    int(content["rank"]), int(content["pid"]), float(content["time_s"]),
                    bool(content["ending"]), Outlook(**content["outlook"]),
                )  # fmt: skip
            except (OSError, ValueError, KeyError, TypeError):
                continue  # just being replaced, or not ours
            found.append(one)
    return sorted(found, key=lambda one: one.rank)
