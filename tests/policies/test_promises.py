"""A share of a class that was promised is kept, at a price that others pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched import Engine, EngineLimits, StepTimeModel, Workload, simulate
from slosched.core.errors import InputError
from slosched.policies import policy
from slosched.policies.promises import HIGHEST, ClassPromises
from slosched.policies.slosched import Slosched

ENGINE = Engine(
    limits=EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048),
    step_time=StepTimeModel(base_s=0.01, prefill_token_s=5e-5, sequence_s=1e-4, kv_token_s=1e-8),
)


def crowd(seed: int, gap_s: float = 0.065, ttft_s: float = 2.0, n: int = 1500) -> Workload:
    """Two classes of the same work, more than the engine can serve in time."""
    rng = np.random.default_rng(seed)
    plain = Workload.plain(
        np.cumsum(rng.exponential(gap_s, n)), rng.integers(200, 3000, n), rng.integers(5, 200, n)
    )
    return replace(
        plain, classes=("chat", "batch"), class_index=rng.integers(0, 2, n), ttft_s=np.full(n, ttft_s)
    )


def kept(work: Workload, policy: Slosched) -> tuple[float, float]:
    """Share of each class within its limits, the first fifth left out."""
    done = simulate(work, policy, engine=ENGINE).outcomes
    late = np.arange(len(work)) >= len(work) // 5
    ok = done.ttft_s <= work.ttft_s
    chat, batch = (float(ok[late & (work.class_index == i)].mean()) for i in (0, 1))
    return chat, batch


@pytest.mark.parametrize("share", [0.9, 0.98])
def test_a_promise_is_kept_and_others_pay(share: float) -> None:
    """In overload a class gets its share and not much more; without a promise both get what is left."""
    work = crowd(5)
    plain = kept(work, Slosched())
    assert max(plain) < 0.9
    chat, batch = kept(work, Slosched(promised={"chat": share}))
    assert share - 0.03 <= chat
    assert batch < plain[1]


def test_a_promise_that_costs_nothing_changes_nothing() -> None:
    """With a light load the price stays 1, and every time is what it was."""
    work = crowd(6, gap_s=0.5, n=200)
    policy = Slosched(promised={"chat": 0.9})
    promised, plain = (simulate(work, p, engine=ENGINE).outcomes.ttft_s for p in (policy, Slosched()))
    assert np.array_equal(promised, plain)


def test_a_promise_that_cannot_be_kept_ends_at_the_highest_price() -> None:
    """Limits shorter than a prompt takes: the price is bounded, and nothing breaks."""
    policy = Slosched(promised={"chat": 0.99})
    view = next(v for v in policy._views if isinstance(v, ClassPromises))
    simulate(crowd(7, ttft_s=0.011, n=400), policy, engine=ENGINE)
    assert 1.0 < view.prices["chat"] <= HIGHEST


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -1.0, float("nan"), "most", None])
def test_shares_out_of_domain_are_refused(share: object) -> None:
    """The message names the class, the domain and the value."""
    with pytest.raises(InputError, match="promised of chat must be a share above 0 and below 1, got"):
        Slosched(promised={"chat": share})  # type: ignore[dict-item]


def test_promises_are_made_in_words() -> None:
    """On the command line and in config files; half a key, or a promise to nobody, is refused."""
    made = policy("slosched:promised.chat=0.99,promised.long-ones=0.5,programs=true")
    assert isinstance(made, Slosched)
    view = next(v for v in made._views if isinstance(v, ClassPromises))
    assert view.promised == {"chat": 0.99, "long-ones": 0.5}
    for words in ("slosched:promised.=0.9", "slosched:promised=0.9", "slosched:promised=1,promised.a=0.9"):
        with pytest.raises(InputError):
            policy(words)
