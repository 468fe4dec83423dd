"""From vectors to scores: places of answers, surfaces, and their files."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from slosched.core.errors import InputError
from slosched.predictors import heads
from slosched.predictors.answers import Answers
from slosched.predictors.heads import Plane, Surface, aims_of, fit_surface, head_of


def answers(tokens: list[int], cut: list[bool], prompt: list[int] | None = None) -> Answers:
    of = list(range(len(tokens))) if prompt is None else prompt
    whole = Answers.single([str(i) for i in range(max(of) + 1)], [1] * (max(of) + 1))
    return Answers(
        prompts=whole.prompts, prompt=np.array(of), output_tokens=np.array(tokens), cut=np.array(cut)
    )


def test_whole_answers_are_normal_scores_and_equal_ones_share_theirs() -> None:
    got = aims_of(answers([30, 10, 20, 20], [False] * 4))
    assert got == pytest.approx(norm.ppf([7 / 8, 1 / 8, 1 / 2, 1 / 2]))


def test_a_cut_answer_counts_as_the_mean_beyond_its_cut() -> None:
    """Against a sum over the normal distribution: half of the answers ended before the cut."""
    got = aims_of(answers([10, 20, 20, 20], [False, False, True, True]))
    grid = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    assert got[2:] == pytest.approx([grid[grid > 0].mean()] * 2, abs=1e-3)
    assert got[1] == pytest.approx(norm.ppf(3 / 8))
    assert aims_of(answers([5, 9, 9], [True, False, False]))[0] == pytest.approx(0.0)  # tells nothing


def test_all_equal_and_all_cut_are_finite() -> None:
    assert aims_of(answers([7] * 5, [False] * 5)) == pytest.approx(np.zeros(5))
    assert np.isfinite(aims_of(answers([7] * 5, [True] * 5))).all()


def test_several_answers_count_as_their_mean() -> None:
    got = aims_of(answers([10, 40, 20, 30], [False] * 4, prompt=[0, 0, 1, 1]))
    assert got == pytest.approx(np.zeros(2), abs=1e-12)


def test_a_surface_on_some_prompts_is_near_the_one_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(300, 3)).astype(np.float32)
    aims = np.sin(places[:, 0]) + places[:, 1] ** 2 + 0.1 * rng.normal(size=300)
    new = rng.normal(size=(200, 3)).astype(np.float32)
    whole = fit_surface(places, aims)
    monkeypatch.setattr(heads, "MOST_CENTRES", 150)
    some = fit_surface(places, aims)
    assert len(some.weights) == 150
    assert np.corrcoef(whole.score(new), some.score(new))[0, 1] > 0.98
    assert np.corrcoef(whole.score(new), np.sin(new[:, 0]) + new[:, 1] ** 2)[0, 1] > 0.9


def test_prompts_that_are_all_alike_give_a_flat_surface() -> None:
    made = fit_surface(np.ones((40, 4), np.float32), np.linspace(-1, 1, 40))
    assert made.score(np.ones((2, 4))) == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    "head", [Plane(np.array([1.0, -2.0])), fit_surface(np.eye(2, dtype=np.float32), np.array([1.0, 3.0]))]
)
def test_heads_come_back_from_their_arrays(head: Plane | Surface) -> None:
    vectors = np.array([[0.5, 1.0], [2.0, 0.0]], np.float32)
    assert head_of(head.arrays()).score(vectors) == pytest.approx(head.score(vectors))
    assert head_of(head.arrays()).size == 2


def test_broken_heads_are_refused_by_name() -> None:
    good = fit_surface(np.eye(2, dtype=np.float32), np.array([1.0, 3.0])).arrays()
    with pytest.raises(InputError, match="head must be finite"):
        head_of({"head": np.array([np.nan])})
    with pytest.raises(InputError, match="width must be above 0"):
        head_of(good | {"width": np.array([0.0])})
    with pytest.raises(InputError, match=r"centres must be of shape \(2, size\)"):
        head_of(good | {"centres": np.ones((3, 2), np.float32)})
    with pytest.raises(KeyError, match="weights"):
        head_of({"centres": good["centres"], "width": good["width"]})
