"""Sources weighed by how right they are: what is told is followed, what is not is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.predictors.blend import HISTORY, Blend, Told
from slosched.predictors.calibration import LEVELS, interval
from slosched.predictors.history import ClassHistory


def pinball(atoms: np.ndarray, tokens: float) -> float:
    miss = np.log(tokens) - np.log(atoms)
    return float(np.maximum(LEVELS * miss, (LEVELS - 1) * miss).mean())


def stream(
    seed: int, *, tie: float, level: float = 0.0, n: int = 400, cap: int = 10**6
) -> dict[str, list[float]]:
    """Answers whose logarithm follows a ranker's score by `tie` (1: fully, 0: another world, -1: against it);
    the ranker's level is off by `level`. Losses and hits of the blend and of the class's history, in turn.
    """
    rng = np.random.default_rng(seed)
    blend, history = Blend(), ClassHistory()
    found: dict[str, list[float]] = {"blend": [], "history": [], "inside": [], "weight": []}
    from scipy.special import ndtri

    for _ in range(n):
        score = rng.normal()
        tokens = float(np.exp(5.0 + tie * 0.8 * score + 0.5 * rng.normal()))
        said = np.exp(5.0 + level + 0.8 * score + 0.5 * ndtri(LEVELS))
        past = np.asarray(history.of("c").atoms)
        told = blend.tell("c", {HISTORY: past, "ranker": np.maximum(1.0, said)})
        atoms = blend.atoms(told)
        assert atoms.shape == (FORECAST_ATOMS,)
        assert np.all(np.diff(atoms) >= 0)
        assert atoms[0] >= 1
        low, high = interval(atoms[None, :])
        found["blend"].append(pinball(atoms, tokens))
        found["history"].append(pinball(past, tokens))
        found["inside"].append(float(low[0] <= tokens <= high[0]))
        found["weight"].append(blend.weights("c").get("ranker", 1.0))
        cut = tokens > cap
        history.observe("c", int(min(tokens, cap)), cut=cut)
        blend.observe(told, min(tokens, cap), cut=cut)
    return found


@pytest.mark.parametrize("level", [0.0, 1.5, -1.5])
def test_a_ranker_that_knows_is_followed_whatever_its_level(level: float) -> None:
    """Its level is another model's: after some answers it is corrected, and intervals hold."""
    runs = [stream(seed, tie=1.0, level=level) for seed in range(4)]
    late = [np.mean(run["blend"][100:]) / np.mean(run["history"][100:]) for run in runs]
    assert max(late) < 0.75  # the noise alone is .53 of the whole spread
    assert 0.76 < np.mean([run["inside"][100:] for run in runs]) < 0.84


@pytest.mark.parametrize("tie", [0.0, -1.0])
def test_a_ranker_from_another_world_is_ignored_within_100_answers(tie: float) -> None:
    runs = [stream(seed, tie=tie) for seed in range(6)]
    late = [np.mean(run["blend"][100:]) / np.mean(run["history"][100:]) for run in runs]
    assert np.mean(late) < 1.01
    assert max(late) < 1.03
    assert 0.76 < np.mean([run["inside"][100:] for run in runs]) < 0.84


def test_a_world_that_turns_is_followed() -> None:
    """First the ranker is right, then it says the opposite."""
    blend, rng = Blend(), np.random.default_rng(0)
    history = np.exp(5.0 + 0.9 * np.linspace(-1.5, 1.5, 8))
    for turn in (1.0, -1.0):
        for _ in range(200):
            score = rng.normal()
            told = blend.tell(
                "c", {HISTORY: history, "ranker": np.exp(5.0 + score + 0.3 * np.linspace(-1, 1, 8))}
            )
            blend.observe(told, float(np.exp(5.0 + turn * score + 0.3 * rng.normal())))
        followed = blend.weights("c")["ranker"]
        assert followed > 0.95 if turn > 0 else followed < 0.05


def test_cut_answers_do_not_drag_forecasts_down() -> None:
    """All answers end at 200 tokens by a limit, half of them before their time."""
    capped = [stream(seed, tie=1.0, cap=150) for seed in range(3)]
    whole = [stream(seed, tie=1.0) for seed in range(3)]
    assert np.mean([r["blend"][100:] for r in capped]) < 1.25 * np.mean([r["blend"][100:] for r in whole])


def test_a_new_class_begins_with_what_others_have_shown() -> None:
    blend, rng = Blend(), np.random.default_rng(0)
    history = np.exp(5.0 + 0.9 * np.linspace(-1.5, 1.5, 8))
    for _ in range(100):
        told = blend.tell("a", {HISTORY: history, "ranker": np.exp(5.0 + rng.normal() * np.ones(8))})
        blend.observe(told, float(np.exp(5.0 + 0.8 * rng.normal())))
    assert blend.weights("b")["ranker"] < 0.05


def test_a_relative_source_never_moves_the_level() -> None:
    """Its middles are a hundred times too long: from the first request on only their differences count."""
    rng, history = np.random.default_rng(0), np.exp(5.0 + 0.9 * np.linspace(-1.5, 1.5, 8))
    plain, relative = Blend({"prior": 0.9}), Blend({"prior": 0.9}, relative=("prior",))
    found: dict[str, list[float]] = {"plain": [], "relative": []}
    for _ in range(40):
        said = 100 * np.exp(5.0 + 0.5 * rng.normal() + 0.3 * np.linspace(-1, 1, 8))
        for name, blend in (("plain", plain), ("relative", relative)):
            atoms = blend.atoms(blend.tell("c", {HISTORY: history, "prior": said}))
            found[name].append(float(np.log(atoms).mean()))
    assert np.mean(found["plain"]) > 8
    assert np.mean(found["relative"]) == pytest.approx(5.0, abs=0.3)
    told = relative.tell("c", {HISTORY: history, "prior": said})
    moved = relative.again(told, 2 * history)
    assert moved.logs[1] - told.logs[1] == pytest.approx(np.log(2.0))


def test_sources_come_and_go() -> None:
    """A hint on some requests only; two sources are tried together; one never heard of starts level."""
    blend = Blend()
    history, said = np.full(8, 100.0), np.full(8, 50.0)
    for i in range(50):
        sources = {HISTORY: history, "ranker": said} | ({"hint": np.full(8, 20.0)} if i % 2 else {})
        told = blend.tell("c", sources)
        assert ("hint+ranker" in told.names) == bool(i % 2)
        blend.observe(told, 20 if i % 2 else 50)
    told = blend.tell("c", {HISTORY: history, "ranker": said, "hint": np.full(8, 20.0)})
    assert blend.atoms(told).mean() < 30
    assert blend.weights("c")["hint"] > 0.5
    later = blend.again(told, np.full(8, 300.0))
    assert later.logs[0] == pytest.approx(np.log(300.0))


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="sources must be with history"):
        Blend().tell("c", {"ranker": np.full(8, 5.0)})
    with pytest.raises(InputError, match="trust of hint must be from 0 to 1, got 2"):
        Blend({"hint": 2})


@pytest.mark.parametrize(
    "said",
    [[np.nan] * 8, [0.0] * 8, [-3.0] * 8, [np.inf] * 8, [5.0] * 3, [[5.0] * 8], ["5"] * 8],
    ids=["nan", "zero", "negative", "infinite", "short", "deep", "words"],
)
def test_what_is_no_length_is_refused_and_leaves_nothing(said: Any) -> None:
    """One number that is none would spoil every later weight."""
    blend, before = Blend(), Blend().as_dict()
    with pytest.raises(InputError, match="atoms of ranker must be 8 finite lengths above 0"):
        blend.tell("c", {HISTORY: np.full(8, 5.0), "ranker": np.array(said)})
    assert blend.as_dict() == before


def useless(seed: int, *, n: int = 150, others: bool = False) -> bool:
    """Whether a ranker that says nothing of the answers ever moves a forecast."""
    rng = np.random.default_rng(seed)
    blend = Blend()
    history = np.exp(5.0 + 0.7 * np.linspace(-1.5, 1.5, 8))
    moved = False
    for i in range(n):
        said = np.exp(5.0 + 0.3 * rng.normal() + 0.7 * np.linspace(-1.5, 1.5, 8))
        sources = {HISTORY: history, "ranker": said}
        if others:
            sources["program"] = np.exp(5.0 + 0.3 * rng.normal() + 0.7 * np.linspace(-1.5, 1.5, 8))
        told = blend.tell("ab"[i % 2], sources)
        moved = moved or bool(np.any(blend.atoms(told) != history))
        blend.observe(told, float(np.exp(5.0 + 0.7 * rng.normal())))
    return moved


def test_a_useless_ranker_moves_no_forecast_in_95_runs_of_100() -> None:
    """What the bound says of one that is no better in expectation; here the history is exactly right."""
    assert np.mean([useless(seed) for seed in range(100)]) <= 0.05


def test_before_it_has_earned_anything_the_forecast_is_the_historys() -> None:
    """Even of a source that will be right: there is no cost at the start, whatever is said."""
    run = stream(0, tie=1.0)
    assert run["blend"][:16] == pytest.approx(run["history"][:16], abs=1e-12)
    earned = np.flatnonzero(np.array(run["weight"][1:]) > 0)[0]
    assert 10 < earned < 60


@pytest.mark.parametrize("late", [0, 300])
def test_a_source_that_comes_late_earns_as_fast(late: int) -> None:
    """Bets begin with its own first answer, and may begin anew after a bad start."""
    rng = np.random.default_rng(1)
    blend, history = Blend(), np.exp(5.0 + 0.9 * np.linspace(-1.5, 1.5, 8))
    needed = 0
    for i in range(late + 200):
        score = rng.normal()
        sources = {HISTORY: history}
        if i >= late:
            sources["ranker"] = np.exp(5.0 + score + 0.3 * np.linspace(-1, 1, 8))
        told = blend.tell("c", sources)
        blend.observe(told, float(np.exp(5.0 + score + 0.3 * rng.normal())))
        needed += i >= late and blend.weights("c").get("ranker", 0.0) == 0.0
    assert needed < 40


def test_what_was_learned_comes_back_from_plain_values() -> None:
    """Forecasts go on as they were; a source may be left out; nonsense is refused and changes nothing."""
    import json

    rng = np.random.default_rng(0)
    blend, history = Blend(relative=("prior",)), np.exp(5.0 + 0.9 * np.linspace(-1.5, 1.5, 8))

    def told(by: Blend, score: float) -> Told:
        said = np.exp(5.0 + score + 0.3 * np.linspace(-1, 1, 8))
        return by.tell("c", {HISTORY: history, "ranker": said, "prior": 3.0 * said})

    for i in range(120):
        score = rng.normal()
        blend.observe(told(blend, score), float(np.exp(5.0 + score + 0.3 * rng.normal())), cut=i % 9 == 0)
    content = json.loads(json.dumps(blend.as_dict()))
    again, without = Blend(relative=("prior",)), Blend(relative=("prior",))
    again.restore(content)
    for score in (-1.0, 0.5):
        assert again.atoms(told(again, score)) == pytest.approx(blend.atoms(told(blend, score)), rel=0.03)
    without.restore(content, without=("ranker",))
    assert set(without.weights("c")) == {HISTORY, "prior"}
    none: dict[str, Any] = {}
    nonsense: list[Any] = [none, [], {"all": none, "classes": none, "centres": []}]
    for broken in (*nonsense, content | {"centres": [[1]]}):
        with pytest.raises(InputError, match="blend"):
            again.restore(broken)
    worse = json.loads(json.dumps(content))
    worse["all"]["losses"]["ranker"] = [1.0]
    with pytest.raises(InputError, match="losses must be finite numbers"):
        again.restore(worse)
    assert again.weights("c")["ranker"] == pytest.approx(blend.weights("c")["ranker"], abs=0.02)
