"""The description of a workload is right and fits into JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from slosched.workloads import Workload, describe, generate
from slosched.workloads.describe import dispersion


def test_json() -> None:
    """The description of a workload with every feature is plain JSON without NaN."""
    about = describe(generate("agentic", rate_per_s=2.0, duration_s=60.0, seed=1))
    assert json.loads(json.dumps(about, allow_nan=False)) == about


def test_empty_and_single() -> None:
    """Nothing and one request have no rate, and that is no error."""
    nothing = np.empty(0, dtype=np.int64)
    empty = describe(Workload.plain(np.empty(0), nothing, nothing))
    assert (empty["requests"], empty["rate_per_s"], empty["gap_cv"]) == (0, None, None)
    single = describe(Workload.plain(np.zeros(1), np.ones(1, dtype=np.int64), np.ones(1, dtype=np.int64)))
    assert (single["requests"], single["span_s"], single["rate_per_s"]) == (1, 0.0, None)


def test_figures() -> None:
    """Rate, burstiness and quantiles are those computed by hand."""
    times = np.array([0.0, 0.1, 0.2, 2.5, 3.9])
    w = Workload.plain(times, np.array([1, 2, 3, 4, 100]), np.full(5, 7))
    about = describe(w)
    assert about["rate_per_s"] == pytest.approx(4 / 3.9)
    gaps = np.diff(times)
    assert about["gap_cv"] == pytest.approx(gaps.std() / gaps.mean())
    counts = np.array([3, 0, 1, 1])
    assert about["dispersion_1s"] == pytest.approx(counts.var() / counts.mean())
    classes = about["classes"]
    assert isinstance(classes, dict)
    assert classes["default"]["prompt_tokens"]["p50"] == 3.0
    assert classes["default"]["limits_s"] == {}
    assert about["forecast_error"] == 0.0


def test_long_silence_is_cheap() -> None:
    """A silence of centuries between two requests costs no memory."""
    assert dispersion(np.array([0.0, 1e10]), 1.0) == pytest.approx(1.0, abs=1e-6)
