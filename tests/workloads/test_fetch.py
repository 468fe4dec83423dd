"""Downloads are checked, resumable and clear about failures; the server is on the loopback."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from slosched.cli import app
from slosched.core.errors import InputError
from slosched.workloads import fetch, read, sources
from slosched.workloads.mixes import MIXES, mix

BODY = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"2023-11-16 18:17:03.9799600,4808,10\n" * 5000


class Publisher(BaseHTTPRequestHandler):
    """Serves BODY at /good and variants of it elsewhere; remembers the ranges asked for."""

    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        """Answer one request."""
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.path == "/good" else 0
        body = {"/other": BODY[::-1], "/long": BODY + b"more"}.get(self.path, BODY)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : len(body) // 2 if self.path == "/cut" else None])

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a publisher whose trace is registered as ``toy``."""
    monkeypatch.setenv("no_proxy", "*")
    toy = replace(
        fetch.TRACES["azure2023-code"],
        file_name="toy.csv",
        size_bytes=len(BODY),
        sha256=hashlib.sha256(BODY).hexdigest(),
    )
    monkeypatch.setitem(fetch.TRACES, "toy", toy)
    monkeypatch.setattr(Publisher, "ranges", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_good(server: str, tmp_path: Path) -> None:
    """The file arrives whole under its name, with progress up to its size, and reads as a trace."""
    seen: list[tuple[int, int]] = []
    path = fetch.get("toy", tmp_path / "new", url=f"{server}/good", progress=lambda a, b: seen.append((a, b)))
    assert path == tmp_path / "new" / "toy.csv"
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["toy.csv"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert [a for a, _ in seen] == sorted(a for a, _ in seen)
    assert len(read(path)) == 5000


def test_present_file_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    """A file with the right checksum is taken as it is; a damaged one is fetched anew."""
    path = fetch.get("toy", tmp_path, url=f"{server}/good")
    assert fetch.get("toy", tmp_path, url=f"{server}/missing") == path
    path.write_bytes(b"damaged")
    assert fetch.get("toy", tmp_path, url=f"{server}/good").read_bytes() == BODY


def test_wrong_bytes(server: str, tmp_path: Path) -> None:
    """Bytes with another checksum are refused and nothing is kept."""
    with pytest.raises(fetch.FetchError, match="must have SHA-256"):
        fetch.get("toy", tmp_path, url=f"{server}/other")
    assert list(tmp_path.iterdir()) == []


def test_too_many_bytes(server: str, tmp_path: Path) -> None:
    """A file longer than published is refused and nothing is kept."""
    with pytest.raises(fetch.FetchError, match="got more"):
        fetch.get("toy", tmp_path, url=f"{server}/long")
    assert list(tmp_path.iterdir()) == []


def test_cut_short_then_resumed(server: str, tmp_path: Path) -> None:
    """A transfer cut short leaves no finished file; the next call asks only for the rest."""
    with pytest.raises(fetch.FetchError, match="run again to resume"):
        fetch.get("toy", tmp_path, url=f"{server}/cut")
    assert [p.name for p in tmp_path.iterdir()] == ["toy.csv.partial"]
    path = fetch.get("toy", tmp_path, url=f"{server}/good")
    assert path.read_bytes() == BODY
    assert Publisher.ranges == [None, f"bytes={len(BODY) // 2}-"]


def test_server_without_ranges(server: str, tmp_path: Path) -> None:
    """A server that ignores ranges sends everything, and the result is still right."""
    (tmp_path / "toy.csv.partial").write_bytes(b"x" * 100)
    assert fetch.get("toy", tmp_path, url=f"{server}/whole").read_bytes() == BODY


def test_refused(server: str, tmp_path: Path) -> None:
    """A missing page is reported with its status."""
    with pytest.raises(fetch.FetchError, match="HTTP status 404"):
        fetch.get("toy", tmp_path, url=f"{server}/missing")


def test_unreachable(server: str, tmp_path: Path) -> None:
    """A server that is not there is reported as such."""
    with pytest.raises(fetch.FetchError, match="must be reachable"):
        fetch.get("toy", tmp_path, url="http://127.0.0.1:9/x", timeout_s=2.0)


def test_bad_arguments(tmp_path: Path) -> None:
    """Unknown traces and other schemes are bad input; a folder that cannot be made is a failure."""
    with pytest.raises(InputError, match="trace must be one of azure2023-code"):
        fetch.get("poems", tmp_path)
    with pytest.raises(InputError, match="http or https"):
        fetch.get("burstgpt", tmp_path, url="file:///etc/passwd")
    (tmp_path / "file").write_text("")
    with pytest.raises(fetch.FetchError, match="must be writable"):
        fetch.get("burstgpt", tmp_path / "file" / "folder")


def test_lengths_are_checked_by_content(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the content is known, it decides: other bytes of the same lengths pass, others do not."""
    lengths = "".join("4808,10\n" for _ in range(5000))
    digest = hashlib.sha256(lengths.encode()).hexdigest()
    known = replace(fetch.TRACES["toy"], size_bytes=None, sha256=None, lengths_sha256=digest)
    monkeypatch.setitem(fetch.TRACES, "toy", known)
    assert fetch.get("toy", tmp_path, url=f"{server}/whole").read_bytes() == BODY
    assert fetch.get("toy", tmp_path, url=f"{server}/missing").is_file()
    (tmp_path / "toy.csv").unlink()
    with pytest.raises(fetch.FetchError, match="run again to resume"):
        fetch.get("toy", tmp_path, url=f"{server}/cut")
    with pytest.raises(fetch.FetchError, match="hold lengths"):
        fetch.get("toy", tmp_path, url=f"{server}/other")
    monkeypatch.setitem(fetch.TRACES, "toy", replace(known, lengths_sha256="0" * 64))
    with pytest.raises(fetch.FetchError, match="lengths of SHA-256"):
        fetch.get("toy", tmp_path, url=f"{server}/whole")
    assert list(tmp_path.glob("toy*")) == []


def test_the_documented_command_assembles_the_folder(data_folder: Path, tmp_path: Path) -> None:
    """From a mirror on the loopback: `get` of all that mixes replay, then a mix of real requests."""
    traces = data_folder / "traces"
    published = {
        "azure2023-code": published_azure(traces / "azure2023_code.csv.gz", "19:14:19.928016"),
        "azure2023-conversation": published_azure(traces / "azure2023_conv.csv.gz", "19:14:08.402527"),
        "mooncake-conversation": published_mooncake(traces / "mooncake_conversation.jsonl.gz"),
        "arxiv-summarization": published_vidur(traces / "lengths_arxiv_summarization_vidur.csv.gz"),
    }
    assert tuple(published) == fetch.MIX_TRACES
    site = tmp_path / "site"
    site.mkdir()
    for name, body in published.items():
        (site / fetch.TRACES[name].url.rsplit("/", 1)[1]).write_bytes(body)
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    folder = tmp_path / "data" / "traces"
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        words = fetch.command(folder).split()[1:]
        mirror = f"http://127.0.0.1:{httpd.server_address[1]}"
        done = CliRunner().invoke(app, [*words, "--mirror", mirror, "--json"], env={"no_proxy": "*"})
        httpd.shutdown()
    assert done.exit_code == 0, done.output
    assert sorted(json.loads(done.stdout)["paths"]) == sorted(str(p) for p in folder.iterdir())
    for name in ("azure", "mooncake"):
        ours, theirs = (
            mix(name, rate_per_s=5.0, requests=50, seed=1, data_dir=where)
            for where in (data_folder, tmp_path / "data")
        )
        assert np.array_equal(theirs.prompt_tokens, ours.prompt_tokens)


def test_a_partial_folder_is_no_silent_change_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder, one without traces, and one that lacks a file of a mix: errors that say what to do."""
    monkeypatch.setenv("SLOSCHED_DATA", str(tmp_path))
    with pytest.raises(InputError, match="slosched workload get azure2023-code"):
        sources.data_folder()
    (tmp_path / "traces").mkdir()
    with pytest.raises(InputError, match="SLOSCHED_DATA"):
        sources.data_folder()
    (tmp_path / "traces" / "azure2023_code.csv").write_bytes(BODY)
    assert sources.data_folder() == str(tmp_path)
    for name in MIXES:
        with pytest.raises(InputError, match="must have traces/"):
            mix(name, rate_per_s=5.0, requests=50, data_dir=tmp_path)


def published_mooncake(path: Path) -> bytes:
    """The publisher's bytes of a Mooncake trace, rebuilt from the recompressed copy."""
    with gzip.open(path, "rt") as lines:
        return "".join(json.dumps(json.loads(line)) + "\n" for line in lines).encode()


def published_vidur(path: Path) -> bytes:
    """Lengths under the publisher's column names."""
    with gzip.open(path, "rt") as lines:
        rows = [line.strip() for line in lines][1:]
    return ("num_prefill_tokens,num_decode_tokens\n" + "\n".join(rows) + "\n").encode()


def published_azure(path: Path, last: str) -> bytes:
    """The publisher's bytes of an Azure trace, rebuilt from the converted copy."""
    with gzip.open(path, "rt") as file:
        rows = [line.strip().split(",") for line in file][1:]
    micros = [round(float(row[0]) * 1e6) for row in rows]
    start = datetime.fromisoformat(f"2023-11-16 {last}") - timedelta(microseconds=micros[-1])
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"] + [
        f"{start + timedelta(microseconds=at):%Y-%m-%d %H:%M:%S.%f}0,{prompt},{output}"
        for at, (_, prompt, output) in zip(micros, rows, strict=True)
    ]
    return "\r\n".join(lines).encode()


def test_published_form_reads_like_the_converted_one(data_folder: Path, tmp_path: Path) -> None:
    """The publisher's own bytes give the workload of the converted copy."""
    path = tmp_path / "published.csv"
    path.write_bytes(published_azure(data_folder / "traces" / "azure2023_code.csv.gz", "19:14:19.928016"))
    ours, theirs = read(data_folder / "traces" / "azure2023_code.csv.gz"), read(path)
    assert theirs.arrival_s == pytest.approx(ours.arrival_s, abs=1e-6)
    assert (theirs.prompt_tokens == ours.prompt_tokens).all()
    assert (theirs.output_tokens == ours.output_tokens).all()


def test_checksums_of_the_registry(data_folder: Path) -> None:
    """Sizes and checksums of the registry are those of the published bytes, rebuilt from converted copies."""
    traces = data_folder / "traces"
    bodies = {
        "azure2023-code": published_azure(traces / "azure2023_code.csv.gz", "19:14:19.928016"),
        "azure2023-conversation": published_azure(traces / "azure2023_conv.csv.gz", "19:14:08.402527"),
    }
    for name, file in (("conversation", "mooncake_conversation"), ("synthetic", "mooncake_synthetic")):
        bodies[f"mooncake-{name}"] = published_mooncake(traces / f"{file}.jsonl.gz")
    for name, body in bodies.items():
        assert len(body) == fetch.TRACES[name].size_bytes, name
        assert hashlib.sha256(body).hexdigest() == fetch.TRACES[name].sha256, name
