"""Downloading public traces from their publishers, checked and resumable."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slosched.core.errors import DataError, InputError
from slosched.workloads.readers import read_lengths

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes expected (0 if the server does not say)."""

CHUNK_BYTES = 1 << 16


class FetchError(OSError):
    """A download that failed: unreachable, refused, cut short or not the published bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicTrace:
    """A trace on its publisher's site.

    Parameters
    ----------
    url
        Address, pinned to a version where the publisher has versions.
    file_name
        Name to save it under.
    size_bytes, sha256
        Of the published file; None where only its content is known.
    lengths_sha256
        Of its lengths, one line ``prompt,output`` a request, where `sha256` is None.
    format
        Its format for `slosched.workloads.read`.
    licence
        Licence and what to cite.
    """

    url: str
    file_name: str
    size_bytes: int | None
    sha256: str | None
    format: str
    licence: str
    lengths_sha256: str = ""


_AZURE = (
    "https://raw.githubusercontent.com/Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data"
)
_AZURE_LICENCE = "CC BY 4.0; cite Patel et al., ISCA 2024 (arXiv 2311.18677)"
_MOONCAKE = (
    "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3cca71daccf2a7afb8fe3f0295358f70e3a69fdb"
    "/FAST25-release/traces"
)
_MOONCAKE_LICENCE = "Apache-2.0; cite Qin et al., Mooncake, FAST 2025"

_VIDUR = "https://raw.githubusercontent.com/microsoft/vidur/6d98aa8f71696520acc603d87439e77cc78160a7/data"

# The development machine could not reach the publishers. The Azure and Mooncake checksums are of the
# published bytes rebuilt from a converted copy (tests repeat this); BurstGPT's is the one that several public
# repositories quote for release v2.0. Of vidur's lengths only the content was at hand: it is what is checked.
TRACES = {
    "azure2023-code": PublicTrace(
        url=f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
        file_name="azure2023_code.csv",
        size_bytes=320_117,
        sha256="54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        format="azure",
        licence=_AZURE_LICENCE,
    ),
    "azure2023-conversation": PublicTrace(
        url=f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
        file_name="azure2023_conv.csv",
        size_bytes=719_188,
        sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        format="azure",
        licence=_AZURE_LICENCE,
    ),
    "mooncake-conversation": PublicTrace(
        url=f"{_MOONCAKE}/conversation_trace.jsonl",
        file_name="mooncake_conversation.jsonl",
        size_bytes=3_029_533,
        sha256="b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        format="mooncake",
        licence=_MOONCAKE_LICENCE,
    ),
    "mooncake-synthetic": PublicTrace(
        url=f"{_MOONCAKE}/synthetic_trace.jsonl",
        file_name="mooncake_synthetic.jsonl",
        size_bytes=1_136_313,
        sha256="bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
        format="mooncake",
        licence=_MOONCAKE_LICENCE,
    ),
    "arxiv-summarization": PublicTrace(
        url=f"{_VIDUR}/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        file_name="lengths_arxiv_summarization_vidur.csv",
        size_bytes=None,
        sha256=None,
        lengths_sha256="40baedc38204625191922ee825fa9ebe22aca027d284f8fbab48dd3c14cdf057",
        format="lengths",
        licence="MIT, Copyright (c) Microsoft Corporation; cite Agrawal et al., Vidur, MLSys 2024",
    ),
    "burstgpt": PublicTrace(
        url="https://github.com/HPMLL/BurstGPT/releases/download/v2.0/BurstGPT_without_fails_1.csv",
        file_name="burstgpt_1.csv",
        size_bytes=51_429_517,
        sha256="a4d068a7113ec0290e74063a1b3447dc6001a30e4298eb313581b71006dda1f4",
        format="burstgpt",
        licence="CC BY 4.0; cite Wang et al., BurstGPT (arXiv 2401.17644)",
    ),
}
"""Traces that `get` knows, by name."""

MIX_TRACES = ("azure2023-code", "azure2023-conversation", "mooncake-conversation", "arxiv-summarization")
"""Those that the mixes ``azure`` and ``mooncake`` and the demonstration replay."""


def command(folder: str | Path = "data/traces") -> str:
    """The command that fetches what mixes replay into a folder of traces."""
    return f"slosched workload get {' '.join(MIX_TRACES)} --out {folder}"


def get(
    name: str,
    folder: str | Path,
    *,
    url: str | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
) -> Path:
    """Download a public trace, or find it downloaded already.

    The bytes go to a ``.partial`` file, which a later call continues; it gets its name only once size and
    SHA-256 are those published.

    Parameters
    ----------
    name
        One of `TRACES`.
    folder
        Where to save; made if absent.
    url
        Another address of the same bytes.
    mirror
        Address of a folder that holds the files under the names they have at their publishers.
    progress
        Told how many bytes are there, and how many are expected.
    timeout_s
        Longest wait for the server in seconds.

    Returns
    -------
    Path
        The file, for `slosched.workloads.read`.

    Raises
    ------
    InputError
        If there is no such trace, or the address is not http or https.
    FetchError
        If the server cannot be reached or refuses, the transfer is cut short, or the bytes are not the
        published ones (then nothing is kept).
    """
    if name not in TRACES:
        raise InputError(f"trace must be one of {', '.join(TRACES)}, got {name!r}.")
    trace = TRACES[name]
    address = url or (f"{mirror.rstrip('/')}/{trace.url.rsplit('/', 1)[1]}" if mirror else trace.url)
    if not address.startswith(("http://", "https://")):
        raise InputError(f"url must be an http or https address, got {address!r}.")
    target = Path(folder) / trace.file_name
    if target.is_file() and _fault(target, trace) is None:
        return target
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer(address, partial, trace.size_bytes, progress, timeout_s)
        fault = _fault(partial, trace)
        if fault is not None:
            partial.unlink()
            raise FetchError(f"{address} must {fault}; nothing was kept.")
        partial.replace(target)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"{target} must be writable, got: {error.strerror or error}.") from error
    return target


def _fault(path: Path, trace: PublicTrace) -> str | None:
    """What a downloaded file must have and has not; None if it is the published one."""
    if trace.sha256 is not None:
        found = _digest(path)
        return None if found == trace.sha256 else f"have SHA-256 {trace.sha256}, got {found}"
    try:
        work = read_lengths(path, rate_per_s=1.0)
    except DataError as error:
        return f"hold lengths, got: {error}"
    lines = zip(work.prompt_tokens.tolist(), work.output_tokens.tolist(), strict=True)
    content = "".join(f"{prompt},{output}\n" for prompt, output in lines)
    found = hashlib.sha256(content.encode()).hexdigest()
    ok = found == trace.lengths_sha256
    return None if ok else f"have lengths of SHA-256 {trace.lengths_sha256}, got {found}"


def _transfer(url: str, partial: Path, size: int | None, progress: Progress | None, timeout_s: float) -> None:
    """Bring the partial file to `size` bytes, continuing what is there where the server can."""
    have = partial.stat().st_size if partial.exists() and size is not None else 0
    if size is not None and have > size:
        partial.unlink()
        have = 0
    if have == size:
        return
    headers = {"User-Agent": "slosched", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout_s
        ) as answer:
            if answer.status != http.client.PARTIAL_CONTENT:
                have = 0
            if size is None and answer.headers["Content-Length"]:
                size = int(answer.headers["Content-Length"])
            with partial.open("ab" if have else "wb") as file:
                while chunk := answer.read(CHUNK_BYTES):
                    have += len(chunk)
                    if size is not None and have > size:
                        break
                    file.write(chunk)
                    if progress:
                        progress(have, size or 0)
    except urllib.error.HTTPError as error:
        raise FetchError(f"{url} must be available, got HTTP status {error.code} {error.reason}.") from error
    except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(f"{url} must be reachable, got: {reason}; run again to resume.") from error
    if size is not None and have > size:
        partial.unlink()
        raise FetchError(f"{url} must have {size} bytes, got more; nothing was kept.")
    if size is not None and have < size:
        raise FetchError(f"{url} must have {size} bytes, got {have}; run again to resume.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
