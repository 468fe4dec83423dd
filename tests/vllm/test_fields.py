"""SLO fields of requests are read leniently and within bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slosched.integrations.vllm.config import ClassConfig, Config
from slosched.integrations.vllm.slo_fields import FIELDS, read_claim

CONFIG = Config(
    classes={"chat": ClassConfig(ttft_ms=500, tpot_ms=50, weight=2), "batch": ClassConfig(e2e_ms=60_000)},
    default_class="batch",
)


def test_a_class_gives_what_the_request_does_not_say() -> None:
    """Limits of the class, overridden one by one."""
    claim = read_claim({"slo_class": "chat", "slo_tpot_ms": 80}, CONFIG)
    assert (claim.slo.ttft_s, claim.slo.tpot_s, claim.slo.e2e_s) == (0.5, 0.08, None)
    assert claim.weight == 2.0
    assert claim.malformed == ()


@pytest.mark.parametrize(
    "value", [-1, 0, math.nan, math.inf, 1e300, True, "soon", [500], {"a": 1}, b"5", "9" * 99]
)
def test_a_bad_limit_falls_back_to_the_class(value: object) -> None:
    """Negative, NaN, huge or wrongly typed limits count as malformed."""
    claim = read_claim({"slo_class": "chat", "slo_ttft_ms": value}, CONFIG)
    assert claim.slo.ttft_s == 0.5
    assert claim.malformed == ("slo_ttft_ms",)


@pytest.mark.parametrize("name", ["premium", "", 7, ["chat"], "x" * 1000])
def test_an_unknown_class_is_the_default_class(name: object) -> None:
    """And is counted."""
    claim = read_claim({"slo_class": name}, CONFIG)
    assert claim.slo_class == "batch"
    assert claim.slo.e2e_s == 60.0
    assert "slo_class" in claim.malformed


def test_absurd_claims_gain_nothing() -> None:
    """Weights and limits are bounded by what the operator allows: by default the class's own."""
    claim = read_claim({"slo_weight": 1e30, "slo_ttft_ms": 1e-9, "slo_tpot_ms": 1e-9}, CONFIG)
    assert claim.weight == CONFIG.of_class("batch").weight
    assert claim.slo.ttft_s == CONFIG.bounds.min_ttft_ms / 1000
    assert claim.slo.tpot_s == CONFIG.bounds.min_tpot_ms / 1000


RIGHTS = Config.model_validate(
    {
        "classes": {"chat": {"ttft_ms": 500, "weight": 2}},
        "default_class": "chat",
        "tenants": {"gold": {"max_weight": 8, "min_ttft_ms": 100}, "huge": {"max_weight": 1e6}},
    }
)


@pytest.mark.parametrize(
    ("tenant", "weight", "ttft_s"), [("nobody", 2.0, 0.5), ("gold", 8.0, 0.1), ("huge", 10.0, 0.5)]
)
def test_a_tenant_may_claim_what_it_has_a_right_to(tenant: str, weight: float, ttft_s: float) -> None:
    """By default nobody gains by claiming; nobody ever gets beyond the bounds; less may be asked for."""
    greedy = {"slo_tenant": tenant, "slo_weight": 1e9, "slo_ttft_ms": 1}
    claim = read_claim(greedy, RIGHTS)
    assert (claim.weight, claim.slo.ttft_s) == (weight, ttft_s)
    modest = read_claim({"slo_tenant": tenant, "slo_weight": 0.5, "slo_ttft_ms": 9000}, RIGHTS)
    assert (modest.weight, modest.slo.ttft_s) == (0.5, 9.0)


def test_numbers_may_be_strings_and_lengths_have_short_names() -> None:
    """Headers carry strings; `pred_len` is `predicted_output_tokens`."""
    claim = read_claim({"slo_e2e_ms": "61500", "pred_len": 180, "pred_len_p90": 400}, CONFIG)
    assert claim.slo.e2e_s == 61.5
    assert (claim.predicted_tokens, claim.predicted_p90_tokens) == (180.0, 400.0)


def test_a_program_is_known_by_name_within_its_tenant() -> None:
    """Equal for equal names of one tenant only; -1 where none is named."""
    one, again, other, foreign = (
        read_claim({"slo_program": name, "slo_tenant": tenant}, CONFIG).program
        for name, tenant in (("task-1", "a"), ("task-1", "a"), ("task-2", "a"), ("task-1", "b"))
    )
    assert one == again
    assert len({one, other, foreign}) == 3
    assert all(0 <= number < 2**62 for number in (one, other, foreign))
    assert read_claim({"slo_tenant": "a"}, CONFIG).program == -1


@pytest.mark.parametrize("name", ["", 7, 1.5, True, ["task"], {"a": 1}, "x" * 129])
def test_a_bad_program_is_none(name: object) -> None:
    """It is ignored and counted."""
    claim = read_claim({"slo_program": name}, CONFIG)
    assert (claim.program, claim.malformed) == (-1, ("slo_program",))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(ANYTHING | st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_nothing_a_client_sends_raises(extra: object) -> None:
    """Every claim is usable whatever the fields hold."""
    claim = read_claim(extra, CONFIG)
    assert claim.slo_class in CONFIG.classes
    assert 0 <= claim.weight <= max(2.0, CONFIG.bounds.max_weight)
    assert -1 <= claim.program < 2**62
