"""Writes hidden states and answer lengths of a serving model to files: training data of a probe."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slosched.predictors.states import States

if TYPE_CHECKING:
    from slosched.integrations.vllm.probe import Seen

SHARD_BYTES = 64 << 20
"""States that are held before a file of training data is written; those of open answers come on top."""


@dataclass(slots=True)
class _Answer:
    prompt_state: NDArray[np.float32]
    states: list[NDArray[np.float32]] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    newest: int = 0

    @property
    def bytes(self) -> int:
        """Memory of its states."""
        return self.prompt_state.nbytes * (1 + len(self.states))


class Collector:
    """Writes states and answer lengths to files of about `SHARD_BYTES`, the rest at exit; of several layers
    to a folder each, ``layer-K``.
    """

    together = False

    def __init__(self, folder: Path, model: str, layers: tuple[int, ...], every_tokens: int) -> None:
        self.folder, self.model, self.layers, self.every_tokens = folder, model, layers, every_tokens
        self._open: dict[str, _Answer] = {}
        self._done: list[tuple[str, _Answer, int, bool]] = []
        self._held_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        atexit.register(self.flush)

    def newest(self, states: Any) -> Any:
        """All of them."""
        return states

    def prompts(self, states: Any) -> Any:
        """All of them."""
        return states

    def take(self, seen: Seen) -> dict[str, Any]:
        """Note the states; no forecasts."""
        for name, state in zip(seen.begun, seen.prompts, strict=True):
            self._open[name] = _Answer(state.copy())  # a view would keep the whole batch's states
        for name, state, tokens in zip(seen.names, seen.newest, seen.generated, strict=True):
            answer = self._open.get(name)
            if answer is not None:
                answer.states.append(state.copy())
                answer.generated.append(tokens)
        return {}

    def sampled(self, runner: Any, output: Any) -> None:
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
        done, self._done, self._held_bytes = self._done, [], 0
        rows = [row for _, a, _, _ in done for row in a.states]
        several = len(self.layers)
        asked = np.stack([a.prompt_state for _, a, _, _ in done]).reshape(len(done), 2, several, -1)
        hidden = asked.shape[3]
        newest = np.stack(rows) if rows else np.empty((0, several * hidden), dtype=np.float32)
        newest = newest.reshape(-1, several, hidden)
        for k, layer in enumerate(self.layers):
            folder = self.folder if several == 1 else self.folder / f"layer-{layer}"
            folder.mkdir(parents=True, exist_ok=True)
            states = States(
                model=self.model,
                layer=layer,
                names=[name for name, *_ in done],
                prompt_states=asked[:, :, k].reshape(len(done), 2 * hidden),
                output_tokens=np.array([tokens for _, _, tokens, _ in done], dtype=np.int64),
                cut=np.array([cut for *_, cut in done], dtype=np.bool_),
                states=newest[:, k],
                request=np.repeat(np.arange(len(done)), [len(a.states) for _, a, _, _ in done]),
                generated_tokens=np.array([g for _, a, _, _ in done for g in a.generated], dtype=np.int64),
            )
            # The process number keeps several workers, and a later run, from writing over each other.
            taken = len(list(folder.glob("*.safetensors")))
            states.save(folder / f"states-{os.getpid()}-{taken:05d}.safetensors")

    def _close(self, name: str, *, cut: bool) -> None:
        answer = self._open.pop(name)
        if answer.newest > 0:
            self._done.append((name, answer, answer.newest, cut))
            self._held_bytes += answer.bytes
        if self._held_bytes >= SHARD_BYTES:
            self.flush()
