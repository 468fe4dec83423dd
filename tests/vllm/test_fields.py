"""SLO fields of requests are read leniently and within bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slosched.integrations.vllm.config import MAX_MS, MAX_NAME, ClassConfig, Config, ThinkingConfig
from slosched.integrations.vllm.slo_fields import FIELDS, MAX_TOKENS, class_of, read_claim

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
    assert claim.weight == class_of(CONFIG, "batch").weight
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


LENGTHS = ("predicted_output_tokens", "predicted_output_tokens_p90", "predicted_thinking_tokens")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [*((name, 1.0, MAX_TOKENS) for name in LENGTHS), ("slo_weight", 0.0, None), ("slo_e2e_ms", None, MAX_MS)],
)
def test_domains_end_where_they_say(name: str, least: float | None, most: float | None) -> None:
    """Both ends belong to the domain, and nothing beyond them does."""
    for edge, beyond in ((least, -1), (most, 1)):
        if edge is not None:
            assert read_claim({name: edge}, CONFIG).malformed == ()
            assert read_claim({name: edge + beyond * 0.25}, CONFIG).malformed == (name,)


def test_claims_are_read_to_the_number() -> None:
    """Each length in its own place, and at its own value; the full name wins over the short one."""
    claim = read_claim(
        {"predicted_output_tokens": 1, "predicted_output_tokens_p90": 2, "predicted_thinking_tokens": 3,
         "pred_len": 7, "slo_weight": 0},
        CONFIG,
    )  # fmt: skip
    assert (claim.predicted_tokens, claim.predicted_p90_tokens, claim.predicted_thinking_tokens) == (1, 2, 3)
    assert claim.weight == 0.0
    assert read_claim({"predicted_output_tokens": None, "pred_len": 7}, CONFIG).predicted_tokens == 7.0
    told = Config(classes={"chat": ClassConfig(predicted_output_tokens=50)}, default_class="chat")
    assert read_claim({}, told).predicted_tokens == 50.0
    assert read_claim({"pred_len": 60}, told).predicted_tokens == 60.0


def test_names_and_numbers_as_text_have_a_length() -> None:
    """Up to 128 characters of a name, and up to 32 of a number."""
    assert read_claim({"slo_tenant": "x" * MAX_NAME}, CONFIG).tenant == "x" * MAX_NAME
    assert read_claim({"slo_tenant": "x" * (MAX_NAME + 1)}, CONFIG).malformed == ("slo_tenant",)
    assert read_claim({"pred_len": "9".zfill(32)}, CONFIG).predicted_tokens == 9.0
    assert read_claim({"pred_len": "9".zfill(33)}, CONFIG).malformed == ("predicted_output_tokens",)


def test_a_limit_on_the_first_answer_token_needs_a_mark() -> None:
    """Without the mark that ends thinking it cannot be kept, so it is counted as malformed."""
    assert read_claim({"slo_ttfat_ms": 900}, CONFIG).malformed == ("slo_ttfat_ms",)
    assert read_claim({}, CONFIG).malformed == ()
    thinks = CONFIG.model_copy(update={"thinking": ThinkingConfig(end=7)})
    claim = read_claim({"slo_ttfat_ms": 900}, thinks)
    assert (claim.slo.ttfat_s, claim.malformed) == (0.9, ())
    assert read_claim({"slo_ttfat_ms": -1}, thinks).malformed == ("slo_ttfat_ms",)


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
