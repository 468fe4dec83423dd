"""Domains and errors of limits, requests, engines and errors themselves."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slosched.core.engine import EngineLimits
from slosched.core.errors import DataError, InputError, MissingExtraError, require
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo

POINT = LengthForecast.point(10)
seconds = st.floats(1e-6, 1e6)
limits = st.none() | seconds


@pytest.mark.parametrize("field", ["ttft_s", "tpot_s", "e2e_s", "ttfat_s"])
@pytest.mark.parametrize("value", [0, 0.0, -1, -1e-9, math.nan, math.inf, -math.inf, "1", True, [1.0]])
def test_bad_limit_is_named(field: str, value: object) -> None:
    """A limit that is no positive finite number is refused with field, domain and value."""
    with pytest.raises(InputError) as error:
        Slo(**{field: value})  # type: ignore[arg-type]
    assert str(error.value) == f"{field} must be a number of seconds above 0, or None, got {value!r}."


@given(ttft=limits, tpot=limits, e2e=limits)
def test_slo_kept_at_equality_and_lost_beyond(
    ttft: float | None, tpot: float | None, e2e: float | None
) -> None:
    """Latencies equal to the limits keep them; a little more of any loses, where there is a limit."""
    slo = Slo(ttft_s=ttft, tpot_s=tpot, e2e_s=e2e)
    exact = [1.0 if limit is None else limit for limit in (ttft, tpot, e2e)]
    assert slo.met(ttft_s=exact[0], tpot_s=exact[1], e2e_s=exact[2])
    for i, limit in enumerate((ttft, tpot, e2e)):
        late = list(exact)
        late[i] = exact[i] * 1.001
        assert slo.met(ttft_s=late[0], tpot_s=late[1], e2e_s=late[2]) == (limit is None)
    assert slo.best_effort == (ttft is tpot is e2e is None)
    assert [math.isinf(x) for x in slo.limits_s()] == [x is None for x in (ttft, tpot, e2e)]


def test_the_first_answer_token_has_a_limit_of_its_own() -> None:
    """Kept at equality, lost beyond; without thinking the first token is the first answer token."""
    slo = Slo(ttfat_s=2.0)
    assert not slo.best_effort
    assert all(math.isinf(limit) for limit in slo.limits_s())
    usual = {"ttft_s": 1.0, "tpot_s": 0.0, "e2e_s": 9.0}
    assert slo.met(**usual, ttfat_s=2.0)
    assert not slo.met(**usual, ttfat_s=2.001)
    assert slo.met(**usual)
    assert slo.met(**usual | {"ttft_s": 2.0})
    assert not slo.met(**usual | {"ttft_s": 2.001})
    assert Slo().met(**usual, ttfat_s=math.inf)


def test_unfinished_meets_nothing() -> None:
    """NaN latencies keep no limit."""
    assert not Slo(ttft_s=1.0).met(ttft_s=math.nan, tpot_s=0.0, e2e_s=0.0)


def test_whole_numbers_are_seconds_too() -> None:
    """An integer limit is accepted."""
    assert Slo(e2e_s=3).limits_s() == (math.inf, math.inf, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", 0),
        ("prompt_tokens", -5),
        ("prompt_tokens", math.nan),
        ("arrival_s", math.nan),
        ("arrival_s", math.inf),
        ("weight", -0.1),
        ("weight", math.nan),
        ("weight", math.inf),
        ("generated_tokens", -1),
    ],
)
def test_bad_request_field_is_named(field: str, value: float) -> None:
    """A number out of a request's domain is refused by name."""
    fields: dict[str, object] = {"request_id": "a", "prompt_tokens": 5, "forecast": POINT, field: value}
    with pytest.raises(InputError, match=f"^{field} must be .*, got {value!r}"):
        Request(**fields)  # type: ignore[arg-type]


def test_request_defaults() -> None:
    """A request is best effort, of weight 1, in class default, arrived at 0, unless told otherwise."""
    request = Request(request_id="a", prompt_tokens=1, forecast=POINT)
    assert request.slo.best_effort
    assert (request.weight, request.slo_class, request.arrival_s, request.generated_tokens) == (
        1.0, "default", 0.0, 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "field", ["max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_tokens", "max_model_len"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None, math.nan])
def test_bad_engine_limit_is_named(field: str, value: object) -> None:
    """Capacities are whole numbers of at least 1."""
    with pytest.raises(InputError, match=f"^{field} must be an integer of at least 1, got"):
        EngineLimits(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 0.5])
def test_bad_prefill_threshold_is_named(value: float) -> None:
    """The threshold of long prefills is 0 or more, whole."""
    with pytest.raises(InputError, match=r"^long_prefill_token_threshold must be at least 0"):
        EngineLimits(long_prefill_token_threshold=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "noun", [Slo(), EngineLimits(), POINT, Request(request_id="a", prompt_tokens=1, forecast=POINT)]
)
def test_nouns_are_frozen(noun: object) -> None:
    """Nobody changes a promise, a forecast or a capacity afterwards."""
    field = dataclasses.fields(noun)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(noun, field, None)


def test_require_and_its_kin() -> None:
    """Errors of users are one family; a file's error names file, row, field, domain and value."""
    with pytest.raises(ValueError, match=r"^x must be above 0, got nan\.$"):
        require(math.nan > 0, "x", "above 0", math.nan)
    error = DataError("a.csv", None, "header", "a known one", "zzz")
    assert str(error) == "a.csv: header must be a known one, got 'zzz'."
    assert isinstance(error, InputError)
    missing = MissingExtraError("ortools", "exact")
    assert isinstance(missing, ImportError)
    assert "pip install 'ortools" in str(missing)  # the version is the installed package's to say
    assert "(extra exact of slosched)" in str(missing)
