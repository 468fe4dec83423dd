"""Merging, cutting, thinning and fitting keep requests whole."""

from __future__ import annotations

import numpy as np
import pytest

from slosched.core.engine import EngineLimits
from slosched.core.errors import InputError
from slosched.workloads import PrefixBlocks, Workload, cut, fit_to_engine, generate, merge, relabel, thin


def blocks(ids: list[list[int]], block_tokens: int = 16) -> PrefixBlocks:
    """Prefix blocks from lists."""
    return PrefixBlocks(
        offsets=np.cumsum([0, *(len(i) for i in ids)]),
        ids=np.array([x for i in ids for x in i], dtype=np.int64),
        block_tokens=block_tokens,
    )


def plain(times: list[float], name: str, prefix: PrefixBlocks | None = None) -> Workload:
    """A small workload whose prompts are 32 tokens."""
    n = len(times)
    return Workload.plain(
        np.array(times), np.full(n, 32), np.arange(1, n + 1), slo_class=name, prefix=prefix, source=name
    )


def test_merge_keeps_every_request() -> None:
    """Rows are merged by time with their labels; equal classes become one."""
    both = merge([plain([0.0, 2.0], "a"), plain([1.0, 2.0], "b"), plain([0.5], "a")])
    assert both.arrival_s.tolist() == [0.0, 0.5, 1.0, 2.0, 2.0]
    assert [both.classes[i] for i in both.class_index.tolist()] == ["a", "a", "b", "a", "b"]
    assert both.output_tokens.tolist() == [1, 1, 1, 2, 2]
    assert both.source == "a; b"


def test_merge_keeps_prefixes_apart() -> None:
    """Equal ids of different workloads do not become equal prefixes; within one they stay equal."""
    one = plain([0.0, 2.0], "a", blocks([[0, 1], [0, 2]]))
    two = plain([1.0, 3.0], "b", blocks([[0, 1], [0, 1]]))
    both = merge([one, plain([1.5], "c"), two])
    assert both.prefix is not None
    rows = [
        both.prefix.ids[a:b].tolist()
        for a, b in zip(both.prefix.offsets[:-1], both.prefix.offsets[1:], strict=True)
    ]
    assert rows[2] == []  # the workload without blocks
    assert rows[0][0] == rows[3][0]
    assert rows[0][1] != rows[3][1]
    assert rows[1] == rows[4]
    assert not set(rows[0] + rows[3]) & set(rows[1])


def test_merge_refuses_different_blocks() -> None:
    """Blocks of different sizes cannot be mixed."""
    with pytest.raises(InputError, match="block_tokens"):
        merge([plain([0.0], "a", blocks([[0]], 16)), plain([0.0], "b", blocks([[0]], 64))])


def test_merge_request_ids_stay_unique() -> None:
    """Ids that occur in two workloads are told apart."""
    from dataclasses import replace

    one = replace(plain([0.0], "a"), request_ids=("x",))
    two = replace(plain([1.0], "b"), request_ids=("x",))
    assert merge([one, two]).request_ids == ("0-x", "1-x")
    assert merge([one, plain([1.0], "b")]).request_ids == ()


def test_cut_and_thin() -> None:
    """A cut starts its clock at 0; thinning keeps about the share and the same rows for a seed."""
    w = generate("chat", rate_per_s=20.0, duration_s=100.0, seed=2)
    piece = cut(w, 10.0, start_s=30.0)
    inside = (w.arrival_s >= 30.0) & (w.arrival_s < 40.0)
    assert np.array_equal(piece.prompt_tokens, w.prompt_tokens[inside])
    assert piece.arrival_s == pytest.approx(w.arrival_s[inside] - 30.0)
    assert len(thin(w, 0.25, seed=1)) == pytest.approx(0.25 * len(w), rel=0.2)
    assert np.array_equal(thin(w, 0.25, seed=1).arrival_s, thin(w, 0.25, seed=1).arrival_s)
    assert len(thin(w, 1.0)) == len(w)


def test_relabel() -> None:
    """All requests get one class."""
    both = relabel(merge([plain([0.0], "a"), plain([1.0], "b")]), "c")
    assert (both.classes, both.class_index.tolist()) == (("c",), [0, 0])


def test_fit_to_engine_counts() -> None:
    """Requests over the context or the KV cache are left out, and the source says how many."""
    w = Workload.plain(np.arange(3.0), np.array([10, 90, 500]), np.array([10, 20, 10]), source="s")
    fitting, dropped = fit_to_engine(w, EngineLimits(kv_blocks=10, block_tokens=16, max_model_len=100))
    assert (fitting.prompt_tokens.tolist(), dropped) == ([10], 2)
    assert fitting.source == "s (2 of 3 requests over 100 tokens left out)"
    fitting, dropped = fit_to_engine(w, EngineLimits(kv_blocks=8, block_tokens=16, max_model_len=1000))
    assert (len(fitting), dropped) == (2, 1)
    assert fit_to_engine(fitting, EngineLimits()) == (fitting, 0)


def test_rows_follow_their_prefix() -> None:
    """Picking rows picks their block ids, also when rows repeat."""
    w = plain([0.0, 1.0, 2.0], "a", blocks([[5], [], [6, 7]]))
    picked = w.rows(np.array([2, 0, 2]), arrival_s=np.arange(3.0))
    assert picked.prefix is not None
    assert picked.prefix.ids.tolist() == [6, 7, 5, 6, 7]
    assert picked.prefix.offsets.tolist() == [0, 2, 3, 5]


def test_workload_checks_itself() -> None:
    """Columns outside their domain are refused by name."""
    from dataclasses import replace

    good = plain([0.0, 1.0], "a")
    for field, value in [
        ("arrival_s", np.array([1.0, 0.5])),
        ("arrival_s", np.array([0.0, np.nan])),
        ("prompt_tokens", np.array([0, 1])),
        ("output_tokens", np.array([1, 0])),
        ("ttft_s", np.array([0.0, 1.0])),
        ("weight", np.array([-1.0, 1.0])),
        ("class_index", np.array([0, 1])),
        ("atoms", np.full((2, 8), 0.5)),
        ("priority", np.zeros(3, dtype=np.int64)),
        ("request_ids", ("x",)),
        ("prefix", blocks([[0]])),
    ]:
        with pytest.raises(InputError, match=field):
            replace(good, **{field: value})  # type: ignore[arg-type]
