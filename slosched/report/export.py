"""Results as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from slosched.lab.comparison import Comparison, Point
from slosched.lab.environment import environment


def point_dict(point: Point) -> dict[str, Any]:
    """One run as nested plain values."""
    load = point.load if math.isfinite(point.load) else None
    return {"load": load, "rate_rps": point.rate_rps} | point.metrics.to_dict()


def results_json(comparison: Comparison) -> bytes:
    """All runs with the environment they ran in; strict JSON, NaN as null."""
    unit = comparison.sustained_rps
    content = {
        "environment": environment(),
        "provenance": {name: list(values) for name, values in comparison.provenance.items()},
        "workload": comparison.workload,
        "source": comparison.source,
        "about": list(comparison.about),
        "sustained_rps": unit if math.isfinite(unit) else None,
        "headline": comparison.headline,
        "points": [point_dict(p) for p in comparison.points],
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def results_csv(comparison: Comparison) -> bytes:
    """All runs, one row each; nested figures become columns such as ``by_class.chat.value``."""
    rows = [flatten(point_dict(p)) for p in comparison.points]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots.

    Examples
    --------
    >>> flatten({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
