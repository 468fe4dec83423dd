"""What is read from a vLLM model runner's hidden states: forecasts of a probe, or training data.

Imported by `slosched.integrations.vllm.plugin` once a model is loaded, not before.
"""

from __future__ import annotations

import atexit
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slosched.errors import InputError
from slosched.integrations.vllm.plugin import ATTRIBUTE, EVERY, LAYER, STATES, probe_folder
from slosched.predictors.probe import Belief, Probe, load_probe
from slosched.predictors.states import States

SHARD_REQUESTS = 512
"""Requests of one file of training data."""


@dataclass(slots=True)
class Step:
    """What a step computed, one entry a request in the batch's order.

    `first` and `last` are the request's rows in `states`, `computed` its tokens computed before the step,
    `prompt` its prompt tokens, `known` its prompt tokens and those sampled so far.
    """

    names: list[str]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    computed: NDArray[np.int64]
    prompt: NDArray[np.int64]
    known: NDArray[np.int64]
    states: Any

    def rows(self, which: list[int]) -> NDArray[np.float32]:
        """States of the newest tokens of some requests, shape (n, hidden size)."""
        return _numpy(self.states[self.last[which]])


class Reader(Protocol):
    """What is done with the states: forecasting, or writing them down."""

    layer: int
    every_tokens: int

    def take(self, step: Step, at: dict[int, int], prompts: dict[int, NDArray[np.float32]]) -> dict[str, Any]:
        """Use a step: newest states `at` {place in the batch: generated tokens}, and prompt states, mean then
        last, of those whose prompt was completed; returns forecasts by request id.
        """
        ...

    def sampled(self, runner: Any, step: Step, output: Any) -> None:
        """Look at the tokens that the step sampled."""
        ...

    def forget(self, names: Any) -> None:
        """Requests have left."""
        ...


class Watch:
    """Reads the middle layer's states of one model runner.

    Attributes
    ----------
    steps, requests, seconds
        Steps and rows read, and what that took on the engine's thread.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.steps = self.requests = 0
        self.seconds = 0.0
        self._sums: dict[str, tuple[Any, int, int]] = {}
        self._next: dict[str, int] = {}
        self._step: Step | None = None

    def before(self, runner: Any) -> dict[str, Any]:
        """Read the step that was computed and is about to be sampled."""
        begin = time.perf_counter()
        self._step = None
        state = runner.execute_model_state
        if state is None:
            return {}
        self._sweep(runner.requests)
        step = self._step = _step(runner, state)
        end = step.computed + step.last - step.first + 1
        for prefilling in np.flatnonzero(step.computed < step.prompt).tolist():
            self._add_prompt(step, prefilling)
        at: dict[int, int] = {}
        prompts: dict[int, NDArray[np.float32]] = {}
        generated = (end - step.prompt).tolist()
        for i, (name, tokens, newest) in enumerate(
            zip(step.names, generated, (end >= step.known).tolist(), strict=True)
        ):
            if tokens < 0 or not newest:
                continue
            total = self._sums.pop(name, None)
            if total is not None:
                if name not in self._next:
                    prompts[i] = np.concatenate([total[0] / total[1], step.rows([i])[0]])
                    self._next[name] = self.reader.every_tokens
                if tokens == 0:
                    continue
            if tokens >= self._next.get(name, 0):
                at[i] = tokens
                self._next[name] = tokens + self.reader.every_tokens
        found = self.reader.take(step, at, prompts) if at or prompts else {}
        self.steps += 1
        self.requests += len(step.names)
        self.seconds += time.perf_counter() - begin
        return found

    def after(self, runner: Any, output: Any, found: dict[str, Any]) -> None:
        """Let what was found ride on the runner's output."""
        begin = time.perf_counter()
        # Of an asynchronous step the scheduler gets the output inside.
        inner = getattr(output, "_model_runner_output", output)
        if found:
            setattr(inner, ATTRIBUTE, found)
        if self._step is not None:
            self.reader.sampled(runner, self._step, inner)
        self.seconds += time.perf_counter() - begin

    def _sweep(self, alive: dict[str, Any]) -> None:
        """Forget requests that have left the runner, in whatever way."""
        if len(self._next) > len(alive) or len(self._sums) > len(alive):
            left = [name for name in {**self._next, **self._sums} if name not in alive]
            for name in left:
                self._next.pop(name, None)
                self._sums.pop(name, None)
            self.reader.forget(left)

    def _add_prompt(self, step: Step, i: int) -> None:
        """Add this step's prompt states to the request's sum; tokens from the prefix cache have none."""
        name = step.names[i]
        if name in self._next:  # it was preempted and computes its prompt again
            return
        begin, prompt = int(step.computed[i]), int(step.prompt[i])
        end = min(prompt, begin + int(step.last[i] - step.first[i]) + 1)
        total, count, reached = self._sums.get(name, (0.0, 0, 0))
        # Preempted amid its prompt, a request computes the beginning again: nothing counts twice.
        start = max(begin, reached)
        if start < end:
            row = int(step.first[i]) - begin
            total = total + _numpy(step.states[row + start : row + end].float().sum(0))
            self._sums[name] = (total, count + end - start, end)


class Forecaster:
    """Forecasts by a trained probe.

    Attributes
    ----------
    forecasts, bad_states
        Forecasts made, and states that were not finite.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.layer, self.every_tokens = probe.about.layer, probe.about.every_tokens
        self.forecasts = self.bad_states = 0
        self._beliefs: dict[str, Belief] = {}

    def take(self, step: Step, at: dict[int, int], prompts: dict[int, NDArray[np.float32]]) -> dict[str, Any]:
        """Forecast atoms by request id, shape (FORECAST_ATOMS,) each."""
        found: dict[str, Any] = {}
        if prompts:
            begun = self.probe.begin(np.stack(list(prompts.values())))
            for i, belief in zip(prompts, begun, strict=True):
                if belief is None:
                    self.bad_states += 1
                else:
                    self._beliefs[step.names[i]] = belief
                    found[step.names[i]] = self.probe.atoms(belief)
        known = [i for i in at if step.names[i] in self._beliefs]
        if known:
            beliefs = [self._beliefs[step.names[i]] for i in known]
            good = self.probe.update(beliefs, step.rows(known), [at[i] for i in known])
            for i, belief, ok in zip(known, beliefs, good, strict=True):
                self.bad_states += not ok
                if ok:
                    found[step.names[i]] = self.probe.atoms(belief)
        self.forecasts += len(found)
        return found

    def sampled(self, runner: Any, step: Step, output: Any) -> None:
        """Nothing to do."""

    def forget(self, names: Any) -> None:
        """Drop the beliefs of requests that have left."""
        for name in names:
            self._beliefs.pop(name, None)


@dataclass(slots=True)
class _Answer:
    prompt_state: NDArray[np.float32]
    states: list[NDArray[np.float32]] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    newest: int = 0


class Collector:
    """Writes states and answer lengths to files of `SHARD_REQUESTS` requests, the rest at exit."""

    def __init__(self, folder: Path, model: str, layer: int, every_tokens: int) -> None:
        self.folder, self.model, self.layer, self.every_tokens = folder, model, layer, every_tokens
        self._open: dict[str, _Answer] = {}
        self._done: list[tuple[str, _Answer, int, bool]] = []
        folder.mkdir(parents=True, exist_ok=True)
        atexit.register(self.flush)

    def take(self, step: Step, at: dict[int, int], prompts: dict[int, NDArray[np.float32]]) -> dict[str, Any]:
        """Note the states; no forecasts."""
        for i, state in prompts.items():
            self._open[step.names[i]] = _Answer(state)
        which = [i for i in at if step.names[i] in self._open]
        for i, row in zip(which, step.rows(which) if which else (), strict=True):
            answer = self._open[step.names[i]]
            answer.states.append(row)
            answer.generated.append(at[i])
        return {}

    def sampled(self, runner: Any, step: Step, output: Any) -> None:
        """See who has just got its last token: an end token, or the most it may have."""
        for name, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True):
            answer, request = self._open.get(name), runner.requests.get(name)
            if answer is None or request is None or not tokens:
                continue
            answer.newest += len(tokens)
            params = request.sampling_params
            last = int(tokens[-1])
            natural = last in (params.stop_token_ids or ()) or (
                last == params.eos_token_id and not params.ignore_eos
            )
            natural = natural and answer.newest >= params.min_tokens
            length = request.num_prompt_tokens + answer.newest
            full = answer.newest >= (params.max_tokens or 1 << 60) or length >= runner.max_model_len
            if natural or full:
                self._close(name, cut=not natural)

    def forget(self, names: Any) -> None:
        """Requests that left before they ended by themselves: stopped by the client."""
        for name in names:
            if name in self._open:
                self._close(name, cut=True)

    def flush(self) -> None:
        """Write what has not been written."""
        if not self._done:
            return
        done, self._done = self._done, []
        hidden = len(done[0][1].prompt_state) // 2
        rows = [row for _, a, _, _ in done for row in a.states]
        states = States(
            model=self.model,
            layer=self.layer,
            names=[name for name, *_ in done],
            prompt_states=np.stack([a.prompt_state for _, a, _, _ in done]),
            output_tokens=np.array([tokens for _, _, tokens, _ in done], dtype=np.int64),
            cut=np.array([cut for *_, cut in done], dtype=np.bool_),
            states=np.stack(rows) if rows else np.empty((0, hidden), dtype=np.float32),
            request=np.repeat(np.arange(len(done)), [len(a.states) for _, a, _, _ in done]),
            generated_tokens=np.array([g for _, a, _, _ in done for g in a.generated], dtype=np.int64),
        )
        # The process number keeps several workers, and a later run, from writing over each other.
        taken = len(list(self.folder.glob("*.safetensors")))
        states.save(self.folder / f"states-{os.getpid()}-{taken:05d}.safetensors")

    def _close(self, name: str, *, cut: bool) -> None:
        answer = self._open.pop(name)
        if answer.newest > 0:
            self._done.append((name, answer, answer.newest, cut))
        if len(self._done) >= SHARD_REQUESTS:
            self.flush()


def reader_for(model: str, hidden_size: int, layers: int) -> Reader:
    """The reader that environment or configuration ask for, fit for a model.

    Raises
    ------
    InputError
        If the probe was trained for another model, hidden size or number of layers, or a setting is wrong.
    """
    folder = os.environ.get(STATES)
    if not folder:
        probe = load_probe(probe_folder() or "")
        probe.check(model=model, hidden_size=hidden_size, layers=layers)
        return Forecaster(probe)
    numbers = {LAYER: max(1, layers // 2), EVERY: 1}
    for name, default in numbers.items():
        text = os.environ.get(name, str(default))
        most = layers if name == LAYER else 10_000
        if not (text.isdecimal() and 1 <= int(text) <= most):
            raise InputError(f"{name} must be an integer from 1 to {most}, got {text!r}.")
        numbers[name] = int(text)
    return Collector(Path(folder), model, numbers[LAYER], numbers[EVERY])


def _step(runner: Any, state: Any) -> Step:
    batch = runner.input_batch
    n = batch.num_reqs
    starts = np.asarray(runner.query_start_loc.np[: n + 1], dtype=np.int64)
    (states,) = state.aux_hidden_states
    return Step(
        names=list(batch.req_ids[:n]),
        first=starts[:-1],
        last=starts[1:] - 1,
        computed=np.asarray(batch.num_computed_tokens_cpu[:n], dtype=np.int64),
        prompt=np.asarray(batch.num_prompt_tokens[:n], dtype=np.int64),
        known=np.asarray(batch.num_tokens_no_spec[:n], dtype=np.int64),
        states=states,
    )


def _numpy(states: Any) -> NDArray[np.float32]:
    return np.asarray(states.detach().float().cpu().numpy(), dtype=np.float32)
