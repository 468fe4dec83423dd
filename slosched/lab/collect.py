"""Training data for length predictors: prompts with the lengths of the answers a model gave to them.

Data are records, one JSON object a line: ``prompt``, ``output_tokens``, ``cut`` (the answer was cut off, so
that its length is only a lower bound), ``sample`` (number of the answer to the same prompt), ``model``.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slosched.core.errors import DataError, InputError, MissingExtraError, require
from slosched.core.reading import json_object, text_lines
from slosched.integrations.openai_client import Client, RequestError
from slosched.predictors.answers import CUT_REASONS
from slosched.predictors.states import states_names

Record = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """How a server is asked.

    Parameters
    ----------
    samples
        Answers to each prompt.
    max_tokens
        Longest answer; a longer one is cut.
    temperature
        Of sampling; 0 makes all samples equal.
    concurrency
        Requests at a time.
    model
        Name at the server; None asks it for its first one.
    chat
        Send prompts as a user's message, so that the server puts its chat template around them.
    timeout_s
        A request that takes longer counts as failed.
    api_key
        Sent as a bearer token.
    seed
        Sample i of prompt j is asked for with seed `seed` + i.
    """

    samples: int = 1
    max_tokens: int = 2048
    temperature: float = 1.0
    concurrency: int = 32
    model: str | None = None
    chat: bool = False
    timeout_s: float = 600.0
    api_key: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "concurrency"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 <= self.temperature <= 2, "temperature", "from 0 to 2", self.temperature)
        require(0 < self.timeout_s < math.inf, "timeout_s", "a finite number above 0", self.timeout_s)


@dataclass(slots=True)
class Collected:
    """Records, and what failed by reason."""

    records: list[Record] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


# prompts and records ----------------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file: JSON objects with ``prompt`` if it ends in ``.jsonl``, else a prompt a line.

    Lines end with a line feed: a prompt may hold any other separator, such as U+2028.

    Raises
    ------
    InputError
        If there is none, or a line is not what it should be.
    """
    path = Path(path)
    lines = text_lines(path)
    if path.suffix != ".jsonl":
        prompts = [line for _, line in lines]
    else:
        prompts = []
        for row, line in lines:
            prompt = json_object(path, row, line).get("prompt")
            if not isinstance(prompt, str) or not prompt:
                raise DataError(path, row, "prompt", "a text", prompt)
            prompts.append(prompt)
    require(len(prompts) > 0, "prompts", f"at least one in {path}", 0)
    return prompts


def write_records(records: Sequence[Record], path: str | Path) -> None:
    """Write records, one JSON object a line, in one move."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    partial.replace(path)


# a running server -------------------------------------------------------------------------------------------


def collect_server(
    url: str,
    prompts: Sequence[str],
    settings: CollectSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Collected:
    """Ask an OpenAI-compatible server and note the lengths of its answers.

    Parameters
    ----------
    url
        Root of the server, such as ``http://localhost:8000``.
    prompts
        What to ask.
    settings
        How to ask.
    progress
        Called with (answers, all answers).

    Returns
    -------
    Collected
        Records by prompt, then sample; what failed is counted, not retried.

    Raises
    ------
    Interrupted
        At Ctrl-C; it holds what was collected so far.
    MissingExtraError
        If aiohttp is not installed.
    InputError
        If the server cannot be reached.
    """
    asker = _Asker(url, list(prompts), settings or CollectSettings(), progress)
    try:
        asyncio.run(asker.run())
    except KeyboardInterrupt:
        raise Interrupted(asker.collected()) from None
    return asker.collected()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a server was asked; `found` holds the answers until then."""

    def __init__(self, found: Collected) -> None:
        super().__init__("interrupted")
        self.found = found


class _Asker:
    """Asks one server every prompt as often as wanted, `concurrency` at a time."""

    def __init__(
        self, url: str, prompts: list[str], settings: CollectSettings, progress: Progress | None
    ) -> None:
        self.url, self.prompts, self.settings, self.progress = url, prompts, settings, progress
        self.model = settings.model
        self.total = len(prompts) * settings.samples
        self.found: dict[tuple[int, int], Record] = {}
        self.failed: Counter[str] = Counter()

    def collected(self) -> Collected:
        """What there is by now: records by prompt, then sample."""
        return Collected([self.found[key] for key in sorted(self.found)], self.failed)

    async def run(self) -> None:
        """Ask for all answers."""
        s = self.settings
        todo = iter([(i, sample) for i in range(len(self.prompts)) for sample in range(s.samples)])
        async with Client(self.url, api_key=s.api_key, timeout_s=s.timeout_s) as client:
            self.model = self.model or await client.first_model()
            await asyncio.gather(*(self.work(client, todo) for _ in range(min(s.concurrency, self.total))))

    async def work(self, client: Client, todo: Iterator[tuple[int, int]]) -> None:
        """Ask for one answer after the other until nothing is left to do."""
        for i, sample in todo:
            try:
                answer = await client.complete(self.question(i, sample))
                self.found[i, sample] = _of_response(self.prompts[i], answer, sample, str(self.model))
            except RequestError as error:
                self.failed[str(error.args[0])] += 1
            except (TimeoutError, KeyError, IndexError, TypeError, ValueError) as error:
                self.failed[type(error).__name__] += 1
            if self.progress is not None:
                self.progress(len(self.found) + self.failed.total(), self.total)

    def question(self, i: int, sample: int) -> Record:
        """The request for one answer to prompt `i`."""
        s, prompt = self.settings, self.prompts[i]
        asked: Record = {
            "model": self.model, "max_tokens": s.max_tokens, "seed": s.seed + sample,
            "temperature": s.temperature,
        }  # fmt: skip
        return asked | ({"messages": [{"role": "user", "content": prompt}]} if s.chat else {"prompt": prompt})


def _of_response(prompt: str, response: Any, sample: int, model: str) -> Record:
    tokens = int(response["usage"]["completion_tokens"])
    reason = response["choices"][0].get("finish_reason")
    if tokens < 1:
        raise ValueError(f"completion_tokens must be at least 1, got {tokens}")
    return _record(prompt, tokens, reason in CUT_REASONS or reason is None, sample, model)


def _record(prompt: str, tokens: int, cut: bool, sample: int, model: str) -> Record:
    return {"prompt": prompt, "output_tokens": tokens, "cut": cut, "sample": sample, "model": model}


# logs -------------------------------------------------------------------------------------------------------

_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_GIVEN = r"Generated response (\S+?)(?: \(streaming complete\))?"
_ASKED = re.compile(rf"Request (\S+) details: prompt: ({_TEXT}), prompt_token_ids")
_IDS = re.compile(_GIVEN + r" details: output_token_ids: \[([^]]*)\]")
_ENDED = re.compile(_GIVEN + r": output: .*finish_reason: (\w+)")


def collect_log(path: str | Path) -> Collected:
    """Records from a log.

    Three kinds are read: records as `write_records` writes them (``completion_tokens`` or ``finish_reason``
    may stand instead); OpenAI bodies, ``{"request": {…}, "response": {…}}`` a line, as proxies log them; and
    vLLM's own log with ``--enable-log-requests --enable-log-outputs`` at level DEBUG. Answers to the same
    prompt are its samples. Lines that hold no answer are counted as failed.

    Raises
    ------
    InputError
        If the file is not UTF-8, or there is no answer in it.
    """
    path = Path(path)
    lines = list(text_lines(path))
    found = _of_vllm(line for _, line in lines) if not any(s.lstrip()[:1] == "{" for _, s in lines) else None
    if found is None:
        found = Collected()
        for row, line in lines:
            try:
                found.records.append(_of_line(json_object(path, row, line)))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                found.failed[f"{type(error).__name__}: {error}"[:80]] += 1
    if not found.records:
        raise InputError(f"log must hold prompts with answers, got {str(path)!r} with none.")
    samples: Counter[tuple[str, str]] = Counter()
    for record in found.records:
        key = (record["model"], record["prompt"])
        record["sample"] = samples[key]
        samples[key] += 1
    return found


def _of_line(content: dict[str, Any]) -> Record:
    if "response" in content:
        request, response = content["request"], content["response"]
        prompt = request["prompt"] if "prompt" in request else request["messages"][-1]["content"]
        model = str(response.get("model") or request.get("model") or "unknown")
        record = _of_response(prompt, response, 0, model)
    else:
        name = "output_tokens" if "output_tokens" in content else "completion_tokens"
        tokens = int(content[name])
        cut = bool(content.get("cut", content.get("finish_reason", "stop") in CUT_REASONS))
        record = _record(content["prompt"], tokens, cut, 0, str(content.get("model", "unknown")))
    if not isinstance(record["prompt"], str) or record["output_tokens"] < 1:
        raise ValueError("no text prompt, or an empty answer")
    return record


def _of_vllm(lines: Iterator[str]) -> Collected:
    import ast

    prompts: dict[str, str] = {}
    tokens: dict[str, int] = {}
    found = Collected()
    for line in lines:
        if match := _ASKED.search(line):
            prompts[match[1]] = str(ast.literal_eval(match[2]))
        elif match := _IDS.search(line):
            tokens[match[1]] = len(match[2].split(",")) if match[2].strip() else 0
        elif match := _ENDED.search(line):
            # vLLM numbers the prompts of one request: the answer may carry the request's name only.
            name = match[1]
            asked = next((n for n in (name, f"{name}-0") if n in prompts), None)
            if asked is None or tokens.get(name, 0) < 1:
                found.failed["answer without prompt or tokens"] += 1
            else:
                cut = match[2] in CUT_REASONS
                found.records.append(_record(prompts[asked], tokens[name], cut, 0, "unknown"))
    return found


# the engine itself ------------------------------------------------------------------------------------------


def collect_states(
    model: str | Path,
    prompts: Sequence[str],
    out: str | Path,
    settings: CollectSettings | None = None,
    *,
    layers: Sequence[int] = (),
    every_tokens: int = 4,
    engine: dict[str, Any] | None = None,
    loud: bool = False,
) -> Collected:
    """Run vLLM on prompts in a process of its own; write hidden states for a probe, and records beside.

    Parameters
    ----------
    model
        Folder of a model.
    prompts
        What to ask.
    out
        Folder to write: ``*.safetensors`` as `slosched.predictors.states` reads, ``answers.jsonl``.
    settings
        Samples, longest answer, temperature, seed, concurrency, chat template or not.
    layers
        Decoder layers a state has passed; the middle if none is given. Several are written to a folder each,
        ``layer-K`` in `out`.
    every_tokens
        A state each so many tokens.
    engine
        Further arguments of ``vllm.LLM``.
    loud
        Let the engine's log and progress bar through to standard error.

    Returns
    -------
    Collected
        Records, each with ``name``, the request's name in the states.

    Raises
    ------
    MissingExtraError
        If vLLM is not installed.
    InputError
        If the folder holds states already, or vLLM handed out none.
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
    settings, out = settings or CollectSettings(), Path(out)
    require(every_tokens >= 1, "every_tokens", "at least 1", every_tokens)
    if any(out.rglob("*.safetensors")):
        raise InputError(f"out must be a folder without states, got {str(out)!r}.")
    asked = {
        "SLOSCHED_STATES": str(out.absolute()), "SLOSCHED_STATES_EVERY": str(every_tokens),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    if layers:
        asked["SLOSCHED_STATES_LAYER"] = ",".join(map(str, layers))
    todo = [(i, s) for i in range(len(prompts)) for s in range(settings.samples)]
    base = {"seed": settings.seed, "max_num_seqs": settings.concurrency, "enable_prefix_caching": False}
    task = {
        "model": str(model), "prompts": [prompts[i] for i, _ in todo], "engine": {**base, **(engine or {})},
        "max_tokens": settings.max_tokens, "temperature": settings.temperature, "chat": settings.chat,
    }  # fmt: skip
    answers = _of_engine(task, asked, loud=loud)
    # vLLM adds a random ending to the names it uses inside.
    first = out / f"layer-{layers[0]}" if len(layers) > 1 else out
    names = {name.rsplit("-", 1)[0]: name for name in states_names(first)}
    records = []
    for (i, sample), answer in zip(todo, answers, strict=True):
        cut = answer["finish_reason"] in CUT_REASONS or answer["finish_reason"] is None
        record = _record(prompts[i], answer["output_tokens"], cut, sample, str(model))
        records.append({**record, "name": names.get(answer["name"])})
    write_records(records, out / "answers.jsonl")
    return Collected(records)


def _of_engine(task: dict[str, Any], variables: dict[str, str], *, loud: bool) -> list[dict[str, Any]]:
    """The answers of vLLM, run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "task.json", Path(folder) / "answers.json"
        given.write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable, "-m", "slosched.integrations.vllm.offline", str(given), str(got)]
        done = subprocess.run(
            command, env={**os.environ, **variables}, stdout=subprocess.PIPE,
            stderr=None if loud else subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        content = json.loads(got.read_text()) if got.exists() else {}
    if "answers" not in content:
        words = content.get("error") or " ".join((done.stderr or "see above").splitlines()[-1:])
        raise InputError(f"{task['model']} must be a model that vLLM can serve: {words}")
    return list(content["answers"])
