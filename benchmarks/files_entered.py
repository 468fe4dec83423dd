"""How many of our files a request passes through: ``python benchmarks/files_entered.py``.

A file counts when one of its functions is called (`sys.setprofile`); code that runs at import does not count.
Inside compiled code calls are not seen. The second part needs vLLM.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import slosched

ROOT = Path(slosched.__file__).parent


def entered(action: Callable[[], object]) -> list[str]:
    """Files of the package whose functions `action` calls, in any thread, sorted."""
    seen: set[str] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and not frame.f_code.co_name.startswith("<"):
            seen.add(frame.f_code.co_filename)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sorted(str(Path(name).relative_to(ROOT)) for name in seen if Path(name).is_relative_to(ROOT))


def trace_to_table() -> None:
    """``slosched simulate`` on a small trace, to the printed table."""
    from typer.testing import CliRunner

    from slosched.cli import app

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.csv"
        rows = "".join(f"{i / 5},{100 + i},{10 + i},chat\n" for i in range(20))
        trace.write_text("arrival_s,prompt_tokens,output_tokens,slo_class\n" + rows, encoding="utf-8")
        result = CliRunner().invoke(app, ["simulate", "--trace", str(trace), "--policy", "fcfs"])
    if result.exit_code:
        raise SystemExit(f"{result.output}{result.exception!r}")


def xargs_to_row() -> list[str]:
    """Files from a request with SLO fields to its admission by vLLM's scheduler under EDF."""
    from slosched.core.engine import EngineLimits
    from slosched.integrations.vllm.adapter import adapted, attach, base_class, make_policy
    from slosched.integrations.vllm.clock import VirtualClock
    from slosched.integrations.vllm.config import Config
    from slosched.integrations.vllm.state import Learned
    from slosched.testing.harness import make_request, make_scheduler

    config = Config.model_validate({"policy": "edf"})

    def factory(vllm_config: Any, **keywords: Any) -> Any:
        scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
        attach(scheduler, vllm_config, config, VirtualClock(), make_policy(config), Learned(config.engine))
        return scheduler

    limits = EngineLimits(max_num_seqs=8, kv_blocks=64, max_model_len=512, max_num_batched_tokens=128)
    scheduler = make_scheduler(limits, factory=factory)
    requests = [
        make_request(
            str(i), list(range(1000, 1020)), max_tokens=8, arrival_s=0.0, priority=0,
            block_tokens=limits.block_tokens, extra={"slo_ttft_ms": 500 + i},
        )
        for i in range(2)
    ]  # fmt: skip

    def admit(request: Any) -> None:
        scheduler.add_request(request)
        if request.request_id not in scheduler.schedule().num_scheduled_tokens:
            raise SystemExit("not admitted")

    admit(requests[0])  # so that all modules are imported
    return entered(lambda: admit(requests[1]))


def show(words: str, files: list[str]) -> None:
    """Print a list of files."""
    print(f"{words}: {len(files)} files")
    print("\n".join(f"  {name}" for name in files), flush=True)


def main() -> None:
    """Print the files."""
    trace_to_table()  # so that all modules are imported
    show("from a trace file to the printed table", entered(trace_to_table))
    if find_spec("vllm") is not None:
        show("from vllm_xargs to an admitted row", xargs_to_row())


if __name__ == "__main__":
    main()
