"""The probe in numpy: beliefs, refinements, files, mismatches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slosched.core.errors import InputError
from slosched.predictors.probe import About, Belief, Mlp, Probe, bin_of, load_probe
from slosched.predictors.probe_training import Settings
from slosched.predictors.refinement import bayes, transition
from slosched.predictors.states import States, load_states, read_tensors, write_tensors

pytest.importorskip("safetensors")

HIDDEN, EDGES = 6, (0.0, 4.0, 20.0, 100.0)
VALUES = (2.0, 10.0, 50.0)


def mlp(inputs: int, outputs: int = len(VALUES), width: int = 5, seed: int = 0) -> Mlp:
    rng = np.random.default_rng(seed)
    shapes = ((inputs, width), (width,), (width, outputs), (outputs,))
    return Mlp(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def probe(refinement: str = "prior", prompt_input: str = "mean+last", **about: object) -> Probe:
    extra = len(VALUES) + 1 if refinement == "prior" else 0
    asked = HIDDEN * (2 if prompt_input == "mean+last" else 1)
    told = {
        "model": "some/tiny", "hidden_size": HIDDEN, "layer": 2, "edges": EDGES, "values": VALUES,
        "refinement": refinement, "prompt_input": prompt_input, **about,
    }  # fmt: skip
    return Probe(About.model_validate(told), mlp(asked), mlp(HIDDEN + extra, seed=1))


def states(requests: int = 3, per_request: int = 4, seed: int = 0, **changed: object) -> States:
    rng = np.random.default_rng(seed)
    n = requests * per_request
    arrays = {
        "model": "some/tiny", "layer": 2, "names": [f"r{i}" for i in range(requests)],
        "prompt_states": rng.normal(size=(requests, 2 * HIDDEN)).astype(np.float32),
        "output_tokens": rng.integers(per_request + 1, 90, requests),
        "cut": np.zeros(requests, dtype=np.bool_),
        "states": rng.normal(size=(n, HIDDEN)).astype(np.float32),
        "request": np.repeat(np.arange(requests), per_request),
        "generated_tokens": np.tile(np.arange(1, per_request + 1), requests),
        **changed,
    }  # fmt: skip
    return States(**arrays)  # type: ignore[arg-type]


# refinements ------------------------------------------------------------------------------------------------


def test_trail_transition_has_the_paper_s_numbers() -> None:
    """Bins of 51.2 tokens: .98047 stays, .01953 moves down, the lowest bin absorbs (papers.md 3.1)."""
    one = transition(tuple(51.2 * i for i in range(11)), 1)
    assert one[0, 0] == 1.0
    np.testing.assert_allclose(np.diag(one)[1:], 0.98046875)
    np.testing.assert_allclose(np.diag(one, k=1), 0.01953125)
    assert np.count_nonzero(one) == 19


@given(st.integers(0, 40), st.integers(0, 40))
def test_transition_is_a_chain(first: int, second: int) -> None:
    """Columns are distributions, and steps add up."""
    whole = transition(EDGES, first + second)
    np.testing.assert_allclose(whole.sum(axis=0), 1.0)
    np.testing.assert_allclose(transition(EDGES, second) @ transition(EDGES, first), whole, atol=1e-12)


@given(
    hnp.arrays(np.float64, 3, elements=st.floats(0.01, 1)),
    hnp.arrays(np.float64, 3, elements=st.floats(0.01, 1)),
    st.integers(0, 30),
)
def test_bayes_is_the_product_rule(
    last: np.ndarray[tuple[int], np.dtype[np.float64]],
    newest: np.ndarray[tuple[int], np.dtype[np.float64]],
    tokens: int,
) -> None:
    """Written out for three bins with a loop."""
    last, newest = last / last.sum(), newest / newest.sum()
    moved = last.copy()
    for _ in range(tokens):
        stay1, stay2 = 1 - 1 / 16, 1 - 1 / 80
        moved = np.array([moved[0] + moved[1] / 16, moved[1] * stay1 + moved[2] / 80, moved[2] * stay2])
    wanted = moved * newest / (moved * newest).sum()
    np.testing.assert_allclose(bayes(last, newest, EDGES, tokens), wanted, rtol=1e-9)


def test_repeated_bayes_is_overconfident() -> None:
    """The same weak evidence ten times gives near certainty: the trap that ``prior`` avoids."""
    p = np.array([0.5, 0.3, 0.2])
    q = p
    for _ in range(10):
        q = bayes(q, p, EDGES, 0)
    assert q.max() > 0.99


# beliefs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refinement", ["none", "bayes", "prior"])
@pytest.mark.parametrize("prompt_input", ["mean", "mean+last"])
def test_forecasts_hold_what_a_forecast_must(refinement: str, prompt_input: str) -> None:
    """Atoms ascend, lie beyond what was generated, and their mean is near the expectation by bin."""
    made = probe(refinement, prompt_input)
    data = states()
    beliefs = [b for b in made.begin(data.prompt_states) if b is not None]
    assert len(beliefs) == 3
    for tokens in (8, 16, 300):
        assert made.update(beliefs, data.states[:3], [tokens] * 3) == [True] * 3
        for belief in beliefs:
            forecast = made.forecast(belief)
            assert forecast.atoms[0] >= tokens + 1
            assert forecast.atoms[-1] <= tokens + EDGES[-1]
            assert belief.now.sum() == pytest.approx(1.0)
            assert VALUES[0] <= made.remaining_tokens(belief) <= VALUES[-1]


def test_rows_do_not_mix() -> None:
    """A belief does not depend on who else is in the batch."""
    made, data = probe(), states(requests=5)
    together = made.begin(data.prompt_states)
    for i in range(5):
        (alone,) = made.begin(data.prompt_states[i : i + 1])
        assert alone is not None
        np.testing.assert_allclose(together[i].now, alone.now, rtol=1e-5)  # type: ignore[union-attr]
    held = [b for b in together if b is not None]
    made.update(held, data.states[:5], [3, 5, 8, 13, 21])
    (alone,) = made.begin(data.prompt_states[4:])
    assert alone is not None
    made.update([alone], data.states[4:5], [21])
    np.testing.assert_allclose(held[4].now, alone.now, rtol=1e-5)


@settings(max_examples=20)
@given(st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 4), st.integers(0, HIDDEN - 1))
def test_states_that_are_not_finite_change_nothing(bad: float, row: int, column: int) -> None:
    """No belief from a bad prompt state; a bad newest state leaves the belief as it was."""
    made, data = probe(), states(requests=5)
    prompts = data.prompt_states.copy()
    prompts[row, column] = bad
    begun = made.begin(prompts)
    assert [b is None for b in begun] == [i == row for i in range(5)]
    held = [b for b in made.begin(data.prompt_states) if b is not None]
    before = [(b.now.copy(), b.generated_tokens) for b in held]
    newest = data.states[:5].copy()
    newest[row, column] = bad
    assert made.update(held, newest, [9] * 5) == [i != row for i in range(5)]
    np.testing.assert_array_equal(held[row].now, before[row][0])
    assert held[row].generated_tokens == 0
    assert all(np.isfinite(b.now).all() for b in held)


def test_bins_hold_their_upper_edge() -> None:
    assert bin_of(np.array([1, 4, 5, 20, 21, 100, 4000]), EDGES).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_atoms_of_a_certain_belief() -> None:
    """All weight in one bin: atoms spread over it."""
    belief = Belief(prior=np.array([0.0, 1.0, 0.0]), now=np.array([0.0, 1.0, 0.0]), generated_tokens=10)
    np.testing.assert_allclose(probe().atoms([belief])[0], 10 + 4 + 16 * (np.arange(8) + 0.5) / 8)


# files and mismatches ---------------------------------------------------------------------------------------


def test_a_saved_probe_is_the_same(tmp_path: Path) -> None:
    made, data = probe("bayes", "mean"), states()
    again = load_probe(made.save(tmp_path / "p"))
    assert again.about == made.about
    for one, other in zip(made.begin(data.prompt_states), again.begin(data.prompt_states), strict=True):
        np.testing.assert_array_equal(one.now, other.now)  # type: ignore[union-attr]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["probe.json", "probe.safetensors"]


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ({"model": "some/tiny", "hidden_size": 8, "layers": 4}, "hidden_size must be 8.*probe for 6"),
        ({"model": "some/tiny", "hidden_size": 6, "layers": 1}, "layer must be from 1 to 1.*probe for 2"),
        ({"model": "other", "hidden_size": 6, "layers": 4}, "model must be 'other'.*probe for 'some/tiny'"),
    ],
)
def test_another_model_is_refused_by_name_and_number(served: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        probe().check(**served)  # type: ignore[arg-type]
    probe().check(model="/elsewhere/tiny", hidden_size=6, layers=4)


def test_bad_probe_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"probe\.json"):
        load_probe(tmp_path)
    folder = probe().save(tmp_path / "p")
    good = (folder / "probe.json").read_text()
    for change, words in (
        ({"refinement": "magic"}, "refinement"),
        ({"edges": [0, 4, 3, 100]}, "edges"),
        ({"values": [1.0]}, "values"),
        ({"hidden_size": 7}, "inputs and bins of the weights"),
        ({"surprise": 1}, "surprise"),
        ({"format": "other"}, "format"),
    ):
        (folder / "probe.json").write_text(json.dumps({**json.loads(good), **change}))
        with pytest.raises(InputError, match=words):
            load_probe(folder)
    (folder / "probe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"probe\.json"):
        load_probe(folder)
    (folder / "probe.json").write_text(good)
    (folder / "probe.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="safetensors"):
        load_probe(folder)


def test_states_survive_files_and_join(tmp_path: Path) -> None:
    one, other = states(), states(requests=2, seed=1)
    one.save(tmp_path / "a.safetensors")
    other.save(tmp_path / "b.safetensors")
    both = load_states(tmp_path)
    assert both.names == [*one.names, *other.names]
    np.testing.assert_array_equal(
        both.remaining_tokens, np.concatenate([one.remaining_tokens, other.remaining_tokens])
    )
    np.testing.assert_array_equal(both.select(np.array([3, 4])).states, other.states)
    states(layer=3).save(tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=r"layer must be 2 .* got 3"):
        load_states(tmp_path)


def test_bad_state_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file or folder"):
        load_states(tmp_path / "none")
    with pytest.raises(InputError, match=r"\*\.safetensors"):
        load_states(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="safetensors"):
        load_states(tmp_path)
    with pytest.raises(InputError, match="request must be from 0 to 2"):
        states(request=np.full(12, 7))
    with pytest.raises(InputError, match="cut must be of shape"):
        states(cut=np.zeros(4, dtype=np.bool_))


@pytest.mark.parametrize(
    ("tensor", "change", "words"),
    [
        ("states", lambda a: a[:, :0], r"states must be rows of one number or more, got \(12, 0\)"),
        ("states", lambda a: a[:, 0], r"states must be rows of one number or more, got \(12,\)"),
        ("prompt_states", lambda a: a[:, 1:], r"prompt_states must be of shape \(3, 12\), got \(3, 11\)"),
        ("output_tokens", lambda a: a * np.nan, "output_tokens must be integers, got 'float64'"),
        ("request", lambda a: a - 2, "request must be from 0 to 2, got -2"),
        ("generated_tokens", np.negative, "generated_tokens must be from 1 to .*, got -1"),
        ("generated_tokens", lambda a: a * 0, "generated_tokens must be from 1 to .*, got 0"),
        ("generated_tokens", lambda a: a + 1000, "generated_tokens must be from 1 to .*, got 1001"),
        ("cut", None, "must be a file of hidden states: 'cut' is missing"),
        ("layer", "-3", "layer must be at least 1, got -3"),
        ("layer", "x", "must be a file of hidden states: invalid literal"),
        ("layer", None, "must be a file of hidden states: 'layer' is missing"),
        ("names", "5", "must be a file of hidden states: 'int' object"),
    ],
)
def test_states_that_are_none_are_refused_by_file_field_and_value(
    tmp_path: Path, tensor: str, change: Any, words: str
) -> None:
    """When they are read, not amid the training."""
    path = tmp_path / "s.safetensors"
    states().save(path)
    arrays, about = read_tensors(path)
    if tensor in arrays and change is None:
        del arrays[tensor]
    elif tensor in arrays:
        arrays[tensor] = change(arrays[tensor])
    else:
        about = {k: v for k, v in (about | {tensor: change}).items() if v is not None}
    write_tensors(path, arrays, about)
    with pytest.raises(InputError, match=rf"{path}:? {words}"):
        load_states(path)


@pytest.mark.parametrize("bins", [1, 10**6])
def test_bins_are_few_enough_to_be_learned(bins: int) -> None:
    with pytest.raises(InputError, match=f"bins must be from 2 to 1000, got {bins}"):
        Settings(bins=bins)


def test_states_with_nan_are_dropped_and_counted() -> None:
    bad = states()
    bad.states[1, 0] = np.nan
    bad.prompt_states[2, 3] = np.inf
    kept, dropped = bad.finite()
    assert dropped == 1 + 4 + 1  # a state, all of the third request, and its prompt
    assert kept.names == ["r0", "r1"]
    assert len(kept.states) == 7
