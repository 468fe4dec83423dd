"""The small model's instruction language; what the model does with it is measured in benchmarks/probe.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from slosched.core.errors import InputError
from slosched.testing import tiny_lm


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lengths_vary_with_meaning_and_chance_not_with_prompt_length(seed: int) -> None:
    """p90 / p10 of at least 8, |tau| with prompt length of at most .15; meaning and chance both matter."""
    rng = np.random.default_rng(seed)
    asked = [tiny_lm._prompt(rng) for _ in range(3000)]
    tokens = np.array([len(tiny_lm.answer(meaning, rng)) for _, meaning in asked])
    again = np.array([len(tiny_lm.answer(meaning, rng)) for _, meaning in asked])
    p10, p90 = np.percentile(tokens, [10, 90])
    assert p90 / p10 >= 8
    assert abs(kendalltau([len(words) for words, _ in asked], tokens).statistic) <= 0.15
    assert 0.6 < kendalltau(tokens, again).statistic < 0.95
    assert tokens.max() + max(len(words) for words, _ in asked) + 2 <= tiny_lm.LENGTH_TOKENS


def test_every_word_has_one_number() -> None:
    words = tiny_lm.vocabulary()
    assert len(set(words)) == len(words)
    known, rng = set(words), np.random.default_rng(0)
    for _ in range(300):
        asked, meaning = tiny_lm._prompt(rng)
        said = tiny_lm.answer(meaning, rng)
        assert set(asked) <= known
        assert set(said) <= known
        assert said[-1] == "done"


def test_of_two_requests_the_last_counts() -> None:
    """The words after "instead" say what is meant, "not" turns the style round."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        words, meaning = tiny_lm._prompt(rng)
        last = words[words.index("instead") + 1 :] if "instead" in words else words
        verb = next(word for word in last if word in tiny_lm.VERBS)
        assert verb == meaning.verb
        if "not" in last:
            assert meaning.style
            assert meaning.style not in last
        elif meaning.style:
            assert meaning.style in last


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="hidden must be a positive multiple of 32, got 40"):
        tiny_lm.train("unused", hidden=40)
    with pytest.raises(InputError, match="count must be at least 1, got 0"):
        tiny_lm.prompts(0, 1)
