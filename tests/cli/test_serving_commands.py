"""The commands around a real server: load on a stand-in for one, doctor and the vLLM engine without vLLM."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

without_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed: tests/vllm covers this"
)


class Handler(BaseHTTPRequestHandler):
    """Streams as many tokens as are asked for; refuses prompts of an odd length."""

    bodies: list[dict[str, Any]]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(content | {"key": self.headers.get("Authorization")})
        if content.get("stream") and len(content["prompt"]) % 2:
            self.send_error(503)
            return
        lines = [
            {
                "choices": [
                    {"text": "x", "finish_reason": "length" if i + 1 == content["max_tokens"] else None}
                ]
            }
            for i in range(content["max_tokens"])
        ]
        self._send("".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n")

    def _send(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/event-stream")
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    bodies: list[dict[str, Any]] = []
    handler = type("OneServer", (Handler,), {"bodies": bodies})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", bodies
        made.shutdown()
        thread.join()


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    rows = [f"{i * 0.1:.1f},{10 + i},{3 + i % 3}" for i in range(12)]
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return f"{path}=chat"


def test_load_reports_what_clients_saw(slosched: Any, server: Any, trace: str, tmp_path: Path) -> None:
    """JSON, table and CSV tell the same; refusals count as unfinished; the report has all its files."""
    url, bodies = server
    out = tmp_path / "out"
    arguments = ("load", url, "--trace", trace, "--rate", 200, "--warm-up", 3, "--label", "mine")
    ended = slosched(*arguments, "--api-key", "secret", "--json", "--out", out)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    odd = sum(len(b["prompt"]) % 2 for b in bodies if b.get("stream"))
    assert told["client"]["refused"] == {"HTTP 503": odd}
    assert 0 < odd < 12
    assert told["client"]["finished"] == 12 - odd
    assert len(bodies) == 12 + 3
    assert bodies[-1]["vllm_xargs"]["slo_class"] == "chat"
    assert bodies[-1]["key"] == "Bearer secret"
    assert (out / "report.html").is_file()
    assert (out / "results.csv").is_file()
    ended = slosched(*arguments, "--csv")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [row["policy"] for row in rows] == ["mine"]
    ended = slosched(*arguments, "--plain")
    assert f"{12 - odd} finished" in ended.out
    assert f"{odd} refused (HTTP 503)" in ended.out
    assert "vllm_xargs" not in bodies[-1]


def test_the_same_seed_sends_the_same_requests(slosched: Any, server: Any, trace: str) -> None:
    """Prompts depend on the seed and nothing else."""
    url, bodies = server
    sent = []
    for seed in (0, 0, 1):
        bodies.clear()
        assert slosched("load", url, "--trace", trace, "--rate", 500, "--seed", seed).code == 0
        sent.append(sorted(str(b["prompt"]) for b in bodies))
    assert sent[0] == sent[1] != sent[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("localhost",), ("url", "http://", "'localhost'")),
        (("http://127.0.0.1:9", "--duration", 3), ("url", "OpenAI-compatible", "127.0.0.1:9")),
        (("http://x", "--rate=0"), ("rate", "0")),
        (("http://x", "--timeout=nan"), ("timeout_s", "nan")),
        (("http://x", "--abort-share=2"), ("abort_share", "2")),
        (("http://x", "--json", "--csv"), ("--json", "--csv")),
        (("http://x", "--workload", "void"), ("workload", "mixed", "'void'")),
    ],
)
def test_bad_input_to_load(slosched: Any, arguments: tuple[Any, ...], words: tuple[str, ...]) -> None:
    """One line names the field, its domain and the value; exit code 2."""
    ended = slosched("load", *arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert len(ended.err.strip().splitlines()) == 1
    for word in words:
        assert word in ended.err


@without_vllm
def test_the_vllm_engine_says_how_to_install_it(slosched: Any) -> None:
    """Without vLLM the engine and the doctor name the command that installs it, and fail."""
    for command in (("simulate",), ("compare", "--policy", "fcfs", "--rate", 1, "--jobs", 1)):
        ended = slosched(*command, "--on", "vllm", "--duration", 5)
        assert ended.code == 1
        last = ended.err.strip().splitlines()[-1]
        assert last.startswith("slosched: vllm is not installed; install it with: pip install 'vllm>=")
    ended = slosched("doctor")
    assert ended.code == 1
    assert "pip install 'vllm>=" in ended.out
    told = json.loads(slosched("doctor", "--json").out)
    assert told["healthy"] is False
    assert [f["topic"] for f in told["findings"] if f["status"] == "error"] == ["vLLM"]


def test_depth_belongs_to_the_vllm_engine(slosched: Any) -> None:
    """Pipeline depth and asynchronous scheduling mean nothing to the simulator."""
    ended = slosched("simulate", "--depth", 2)
    assert (ended.code, "depth must be given with --on vllm" in ended.err) == (2, True)
    ended = slosched("simulate", "--async")
    assert (ended.code, "async must be given with --on vllm" in ended.err) == (2, True)
