"""States are read alike from both of vLLM's model runners, with and without asynchronous scheduling."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.integrations.vllm import plugin
from slosched.integrations.vllm.probe import Seen, Watch
from slosched.integrations.vllm.probe_settings import ATTRIBUTE

torch = pytest.importorskip("torch")

HIDDEN = 4
PROMPTS = {"a": 5, "b": 3, "c": 7}
BUDGET = 6


def state_of(name: str, position: int) -> np.ndarray[Any, Any]:
    """The state of a token: its request and its place."""
    return np.array([ord(name), position, position % 3, 1.0], dtype=np.float32)


class Reader:
    """Notes what it is given."""

    layers: tuple[int, ...] = (1,)
    every_tokens = 1
    together = True

    def __init__(self) -> None:
        self.states: dict[tuple[str, int], list[float]] = {}
        self.begun: dict[str, list[float]] = {}
        self.left: list[str] = []

    def newest(self, states: Any) -> Any:
        return states

    def prompts(self, states: Any) -> Any:
        return states

    def take(self, seen: Seen) -> dict[str, Any]:
        self.states |= {
            (name, tokens): state.tolist()
            for name, tokens, state in zip(seen.names, seen.generated, seen.newest, strict=True)
        }
        self.begun |= {name: state.tolist() for name, state in zip(seen.begun, seen.prompts, strict=True)}
        return {name: np.full(8, 9.0) for name in seen.names}

    def sampled(self, runner: Any, output: Any) -> None: ...

    def forget(self, names: Any) -> None:
        self.left += names


def runner_v1(batch: dict[str, Any], states: Any, alive: Any) -> Any:
    n = len(batch["names"])
    return SimpleNamespace(
        execute_model_state=SimpleNamespace(aux_hidden_states=[states]), requests=alive,
        query_start_loc=SimpleNamespace(np=batch["starts"]),
        input_batch=SimpleNamespace(
            num_reqs=n, req_ids=batch["names"], num_computed_tokens_cpu=batch["computed"],
            num_prompt_tokens=batch["prompt"], num_tokens_no_spec=batch["known"],
        ),
    )  # fmt: skip


def runner_v2(batch: dict[str, Any], states: Any, alive: Any) -> Any:
    """Requests keep a slot; the batch says which. Slots go the other way round here."""
    n = len(batch["names"])
    slots = 9 - np.arange(n)
    prompt = np.zeros(16, dtype=np.int32)
    prompt[slots] = batch["prompt"]
    inputs = SimpleNamespace(
        num_reqs=n, req_ids=batch["names"], idx_mapping_np=slots, query_start_loc_np=batch["starts"],
        num_computed_tokens_np=batch["computed"], prefill_len_np=batch["known"],
    )  # fmt: skip
    return SimpleNamespace(
        execute_model_state=SimpleNamespace(input_batch=inputs, aux_hidden_states=[states]),
        req_states=SimpleNamespace(prompt_len=SimpleNamespace(np=prompt), req_id_to_index=alive),
    )


def serve(make: Any, *, asynchronous: bool) -> Reader:
    """Three requests with prompts in chunks, five tokens each; states' memory is used again at once."""
    reader = Reader()
    watch = Watch(reader)
    computed = dict.fromkeys(PROMPTS, 0)
    memory = torch.zeros((BUDGET + 8, HIDDEN))
    waiting: list[Any] = []
    for step in range(12):
        names, tokens = [], []
        left = BUDGET
        for name, prompt in PROMPTS.items():
            take = min(left, prompt - computed[name]) if computed[name] < prompt else 1
            if take and computed[name] < prompt + 5:
                names.append(name)
                tokens.append(take)
                left -= take if computed[name] < prompt else 0
        if not names:
            break
        rows = [state_of(n, computed[n] + k) for n, t in zip(names, tokens, strict=True) for k in range(t)]
        memory[: len(rows)] = torch.from_numpy(np.stack(rows))
        batch = {
            "names": names,
            "starts": np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32),
            "computed": np.array([computed[n] for n in names], dtype=np.int32),
            "prompt": np.array([PROMPTS[n] for n in names], dtype=np.int32),
            "known": np.array([max(PROMPTS[n], computed[n]) for n in names], dtype=np.int32),
        }
        runner = make(batch, memory, dict.fromkeys(PROMPTS, 1))
        found = watch.before(runner)
        tokens_out = SimpleNamespace(step=step)
        output = SimpleNamespace(get_output=lambda out=tokens_out: out) if asynchronous else tokens_out
        watch.after(runner, output, found)
        memory[:] = float("nan")
        for key in ("starts", "computed", "known"):
            batch[key][:] = -1  # type: ignore[index]
        waiting.append(output)
        if asynchronous and len(waiting) > 1:  # the tokens of the step before
            assert waiting.pop(0).get_output().step == step - 1
        for name, took in zip(names, tokens, strict=True):
            computed[name] += took
    for output in waiting if asynchronous else ():
        got = output.get_output()
        assert set(getattr(got, ATTRIBUTE)) <= set(PROMPTS)
    return reader


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("make", [runner_v1, runner_v2])
def test_states_are_those_of_the_tokens(make: Any, asynchronous: bool) -> None:
    """Newest states by generated tokens; prompts' mean, over all chunks, and last state."""
    reader = serve(make, asynchronous=asynchronous)
    for name, prompt in PROMPTS.items():
        rows = np.stack([state_of(name, k) for k in range(prompt)])
        assert reader.begun[name] == pytest.approx([*rows.mean(0), *rows[-1]])
        for tokens in range(1, 6):
            assert reader.states[name, tokens] == state_of(name, prompt + tokens - 1).tolist()
    assert len(reader.states) == 15


def test_a_failure_amid_an_asynchronous_step_costs_no_token(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Reader):
        def take(self, seen: Seen) -> dict[str, Any]:
            raise RuntimeError("no")

    watch = Watch(Fails())
    batch = {
        "names": ["a"], "starts": np.array([0, 1]), "computed": np.array([5]), "prompt": np.array([5]),
        "known": np.array([5]),
    }  # fmt: skip
    runner = runner_v2(batch, torch.ones((4, HIDDEN)), {"a": 1})
    output = SimpleNamespace(get_output=lambda: "tokens")
    with caplog.at_level("WARNING", logger="vllm.slosched"):
        watch.after(runner, output, watch.before(runner))
        assert output.get_output() == "tokens"
    assert "states are lost" in caplog.text


def test_the_second_runner_is_watched_once_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second:
        loaded = 0

        def load_model(self, *, dummy: bool = False) -> str:
            self.loaded += 1
            return "loaded"

        def sample_tokens(self, grammar: object) -> str:
            return "sampled"

    plugin._wrap(Second, "load_model")
    watch = SimpleNamespace(before=lambda runner: "found", after=lambda *arguments: seen.append(arguments[2]))
    seen: list[Any] = []
    monkeypatch.setattr(plugin, "_attach", lambda runner: watch)
    runner: Any = Second()
    assert runner.sample_tokens(None) == "sampled"
    assert runner.load_model(dummy=True) == "loaded"
    assert runner.sample_tokens(None) == "sampled"
    assert (runner.loaded, seen, plugin.watch_of(runner)) == (1, ["found"], watch)


@pytest.mark.vllm
def test_the_installed_second_runner_has_what_is_read() -> None:
    """From its source, since it cannot be imported without Triton: names that the plugin relies on."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "v1" / "worker" / "gpu"
    if not (folder / "model_runner.py").exists():
        pytest.skip("this vLLM has no Model Runner V2")

    def members(file: str, name: str) -> set[str]:
        for node in ast.parse((folder / file).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                assigned = {
                    n.attr
                    for n in ast.walk(node)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
                }
                fields = {
                    f.target.id
                    for f in node.body
                    if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
                }
                return assigned | fields | {f.name for f in node.body if isinstance(f, ast.FunctionDef)}
        raise AssertionError(f"{file} has no class {name}")

    assert {
        "load_model", "sample_tokens", "get_model", "execute_model_state", "use_aux_hidden_state_outputs",
        "vllm_config", "req_states",
    } <= members("model_runner.py", "GPUModelRunner")  # fmt: skip
    assert {"input_batch", "aux_hidden_states"} <= members("model_runner.py", "ExecuteModelState")
    assert {
        "req_ids", "num_reqs", "idx_mapping_np", "query_start_loc_np", "num_computed_tokens_np",
        "prefill_len_np",
    } <= members("input_batch.py", "InputBatch")  # fmt: skip
    assert {"prompt_len", "req_id_to_index"} <= members("states.py", "RequestState")
    assert "get_output" in members("async_utils.py", "AsyncOutput")
