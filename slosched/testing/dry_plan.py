"""One dry plan of the configured policy in a process of its own, which ends whatever the policy does.

``python -m slosched.testing.dry_plan`` is that process: it writes a line of JSON for each stage it begins,
and one for what came of it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from tempfile import TemporaryFile
from typing import Any, NamedTuple

PLANS = 4
"""Plans made; the quickest counts, since the first compiles and imports."""


START_S = 60.0
"""Seconds for Python and this package to start, not the policy's fault: a busy machine takes long."""

MOST_BYTES = 1 << 16
"""Far more than the lines of a dry plan."""


class DryPlan(NamedTuple):
    """What became of a dry plan: ``status`` is ok or error, ``text`` says it in words."""

    status: str
    text: str


def dry_plan(limit_s: float) -> DryPlan:
    """Make and ask the policy of the configuration that ``SLOSCHED_CONFIG`` names, in a process of its own.

    Parameters
    ----------
    limit_s
        Seconds for making the policy, and as many for its plans, above 0; then the process is ended.

    Returns
    -------
    DryPlan
        What came of it. Also where the policy raises, never returns or ends the process.
    """
    command = [sys.executable, "-m", "slosched.testing.dry_plan"]
    with TemporaryFile() as out, TemporaryFile() as err:  # pipes would wait for whatever the policy started
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            code, told = _watch(process, out.fileno(), limit_s)
        finally:
            process.kill()
            process.wait()
        err.seek(0)
        said = err.read().decode(errors="replace").split("\n")
    if code is None:
        doing = next((line["doing"] for line in reversed(told) if "doing" in line), "starting Python")
        bounded = any(line.get("bounded") for line in told)
        return DryPlan("error", f"{doing}: not done within {limit_s:g} s. {_meaning(doing, bounded)}")
    if told and "status" in told[-1]:
        return DryPlan(told[-1]["status"], told[-1]["text"])
    last = next((f": {line}" for line in reversed(said) if line.strip()), "")
    return DryPlan("error", f"the process ended with code {code} during a plan{last}")


def _watch(
    process: subprocess.Popen[bytes], out: int, limit_s: float
) -> tuple[int | None, list[dict[str, Any]]]:
    """The exit code, None for a stage that has taken too long, and what was told by then."""
    told: list[dict[str, Any]] = []
    begin = time.monotonic()
    while True:
        code = process.poll()
        now = _lines(os.pread(out, MOST_BYTES, 0))  # the file's place is the process's own
        if len(now) > len(told):
            told, begin = now, time.monotonic()
        if code is not None or time.monotonic() - begin > (limit_s if told else max(limit_s, START_S)):
            return code, told
        time.sleep(0.05)


def _meaning(doing: str, bounded: bool) -> str:
    """What a policy that is stuck there would do to a server."""
    if not doing.startswith("planning"):
        return "vLLM would not start"
    if bounded:
        return "The policy says it is bounded, so it would plan on the engine's thread and stop the engine"
    return (
        "Serving would start after a minute and go first come, first served: the policy is turned off. "
        "Compiled code that keeps the interpreter to itself would stop the engine"
    )


def _lines(output: bytes) -> list[dict[str, Any]]:
    """The lines of JSON among what a process printed."""
    found = []
    for line in output.decode(errors="replace").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict):
            found.append(told)
    return found


def _plan() -> DryPlan:
    """Make and ask the policy here."""
    from slosched.core.engine import EngineLimits
    from slosched.integrations.vllm.adapter import make_policy, rehearsal
    from slosched.integrations.vllm.config import load_config
    from slosched.integrations.vllm.decision import checked

    config = load_config()
    _tell(doing=f"importing and making policy {config.policy}")
    policy = make_policy(config)
    _tell(doing=f"planning with policy {config.policy}", bounded=policy.bounded)
    snapshot, seconds = rehearsal(EngineLimits()), math.inf
    for _ in range(PLANS):
        begin = time.perf_counter()
        decision = checked(policy.plan(snapshot), snapshot)
        seconds = min(seconds, time.perf_counter() - begin)
    if not policy.bounded:
        where = "always beside the engine's thread, since it does not say that it is bounded"
    elif seconds * 1e6 <= config.guards.time_box_us:
        where = "on the engine's thread"
    else:
        where = "in the background"
    order = ", ".join(snapshot.table.request_ids[row] for row in decision.order.tolist()[:6])
    return DryPlan(
        "ok",
        f"policy {policy.name}: {seconds * 1e6:.0f} us for 12 waiting and 4 running requests; it plans "
        f"{where}; first would be {order}",
    )


def _tell(**words: Any) -> None:
    print(json.dumps(words), file=sys.__stdout__, flush=True)


def main() -> None:
    """Plan, and tell it; what the policy prints goes to the standard error."""
    with redirect_stdout(sys.stderr):
        try:
            found = _plan()
        except Exception as error:
            found = DryPlan("error", f"{type(error).__name__}: {error}")
    _tell(status=found.status, text=found.text)


if __name__ == "__main__":
    main()
