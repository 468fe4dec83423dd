"""Whatever is wrong with a file becomes one clear error that names it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slosched.core.errors import DataError, InputError
from slosched.workloads import Workload, read, write
from slosched.workloads.fields import MOST_TOKENS

GENERIC = "arrival_s,prompt_tokens,output_tokens,ttft_s,weight\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,10,10\n"
MOON = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
AGENTIC = "session,agent,t_s,input_tokens,output_tokens,reused_prefix_tokens\n"

CASES = [
    ("", ["file must be not empty"], "empty file"),
    ("\n\n", ["file must be not empty"], "only blank lines"),
    (GENERIC, ["file must be not empty", "no rows"], "header without rows"),
    ("arrival_s,tokens\n0,1\n", ["header must be columns", "prompt_tokens"], "wrong columns"),
    ("a,b\n0,1\n", ["header must be the columns of a known format", "a, b"], "unknown header"),
    (GENERIC.replace("weight", "ttft_s") + "0,1,1,1,1\n", ["distinct columns", "ttft_s twice"], "twice"),
    (GENERIC + "nan,5,5,,\n", ["row 1", "arrival_s", "'nan'"], "NaN time"),
    (GENERIC + "-1,5,5,,\n", ["row 1", "arrival_s must be seconds of at least 0", "'-1'"], "negative time"),
    (GENERIC + "2,5,5,,\n1,5,5,,\n", ["row 2", "arrival_s", "at least 2", "'1'"], "time runs back"),
    (GENERIC + "inf,5,5,,\n", ["row 1", "arrival_s", "'inf'"], "endless time"),
    (GENERIC + "0,0,5,,\n", ["row 1", "prompt_tokens must be an integer from 1 to", "'0'"], "zero prompt"),
    (GENERIC + "0,5,0,,\n", ["row 1", "output_tokens must be an integer from 1 to", "'0'"], "zero output"),
    (GENERIC + "0,5,-3,,\n", ["row 1", "output_tokens", "'-3'"], "negative output"),
    (GENERIC + f"0,{MOST_TOKENS + 1},5,,\n", ["row 1", "prompt_tokens", str(MOST_TOKENS)], "absurd"),
    (GENERIC + "0,5,2.5,,\n", ["row 1", "output_tokens must be an integer", "'2.5'"], "fraction"),
    (GENERIC + "0,five,5,,\n", ["row 1", "prompt_tokens", "'five'"], "word"),
    (GENERIC + "0,,5,,\n", ["row 1", "prompt_tokens", "None"], "nothing"),
    (GENERIC + "0,5,5,0,\n", ["row 1", "ttft_s must be a number of seconds above 0", "'0'"], "zero SLO"),
    (GENERIC + "0,5,5,nan,\n", ["row 1", "ttft_s", "'nan'"], "NaN SLO"),
    (GENERIC + "0,5,5,1,-1\n", ["row 1", "weight must be a finite number of at least 0"], "weight"),
    (GENERIC + "0,5,5\n", ["row 1", "row must be 5 fields", "3 fields"], "short row"),
    (GENERIC + '0,"5,5,,\n', ["row 1"], "open quote"),
    (
        "arrival_s,prompt_tokens,output_tokens,request_id\n0,1,1,a\n0,1,1,a\n",
        ["row 2", "unique", "'a'"],
        "ids",
    ),
    (
        "arrival_s,prompt_tokens,output_tokens,predicted_output_tokens\n0,1,1,5 4\n",
        ["row 1", "predicted_output_tokens", "ascending"],
        "atoms",
    ),
    (AZURE + "yesterday,10,10\n", ["row 2", "TIMESTAMP must be a time", "'yesterday'"], "no stamp"),
    (MOON + MOON.replace("0,", "-5,", 1), ["row 2", "timestamp", "-5"], "negative stamp"),
    (MOON + MOON.replace('"timestamp": 0, ', ""), ["row 2", "keys must be timestamp"], "no stamp"),
    (
        MOON + MOON.replace("[0, 1]", "[0, 1, 2, 3]"),
        ["row 2", "hash_ids", "one id per 512 tokens"],
        "too many ids",
    ),
    (MOON.replace("[0, 1]", '["x"]'), ["row 1", "hash_ids", "'x'"], "ids that are none"),
    (MOON.replace("600", "true"), ["row 1", "input_length", "True"], "truth for a number"),
    (MOON.replace("600", "NaN"), ["row 1", "input_length", "nan"], "NaN in JSON"),
    (MOON + "{", ["row 2", "line must be one JSON object", "'{'"], "cut line"),
    (MOON + "[1]", ["row 2", "line must be one JSON object"], "list for an object"),
    (MOON + '{"a":' * 100_000, ["row 2", "one JSON object"], "deep nesting"),
    (AGENTIC + "1,main,0,100,5,101\n", ["row 1", "reused_prefix_tokens", "from 0 to 100"], "reuse"),
    (AGENTIC + "1,main,5,100,5,0\n1,main,4,100,5,0\n", ["row 2", "t_s", "at least 5"], "turns run back"),
    (AGENTIC + "1,main,5,100,0,0\n", ["output_tokens must be above 0 in some row"], "all silent"),
]


@pytest.mark.parametrize(("text", "parts"), [c[:2] for c in CASES], ids=[c[2] for c in CASES])
def test_clear_error(tmp_path: Path, text: str, parts: list[str]) -> None:
    """The message is one line that names the file, the row, the field, its domain and the value."""
    path = tmp_path / "bad.trace"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_truncated_gzip(tmp_path: Path) -> None:
    """A gzip file that is cut short is refused whole, wherever the cut is."""
    packed = gzip.compress((GENERIC + "0,5,5,,\n" * 2000).encode())
    path = tmp_path / "cut.csv.gz"
    for length in (3, 12, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:length])
        with pytest.raises(DataError, match="gzip"):
            read(path)


def test_not_utf8(tmp_path: Path) -> None:
    """A file in another encoding is refused with the offending byte."""
    path = tmp_path / "latin.csv"
    path.write_bytes(GENERIC.encode() + b"0,5,5,,\xe9\n")
    with pytest.raises(DataError, match=r"UTF-8, got b'\\xe9'"):
        read(path)


def test_unreadable(tmp_path: Path) -> None:
    """A missing file and a folder are bad input, not a crash."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="readable file"):
            read(path)


def test_unknown_format(tmp_path: Path) -> None:
    """An unknown format is refused with the known ones."""
    with pytest.raises(InputError, match=r"one of auto, azure.*'xml'"):
        read(tmp_path / "x", format="xml")


VALID = [
    GENERIC.encode() + b"0,5,5,1,1\n0.5,50,5,,2\n1.5,5,500,1e3,0\n",
    AZURE.encode() + b"2023-11-16 18:17:05,1000,20\n",
    (MOON * 3).encode(),
    AGENTIC.encode() + b"1,main,0,1000,5,0\n1,main,1,1100,5,960\n2,main,0,100,5,0\n",
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens\n1,GPT,5,6,11\n2,GPT,5,6,11\n",
    b'{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6, "prefix_ids": [1], "prefix_block_tokens": 4}',
    b'{"input_lens": [3, 4], "output_lens": [5, 6], "start_times": [1.5, 2.5], "errors": ["", ""]}',
    b'{"metadata": {"request_start_ns": 1759813207532900363, "x_correlation_id": "a", "request_end_ns": 2e18}'
    b', "metrics": {"input_sequence_length": {"value": 5}, "output_sequence_length": {"value": 9}}}',
    b'{"created": 1716300000, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n' * 2,
    b'{"chat_id": 0, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 12, "output_length": 20, '
    b'"hash_ids": [0]}\n' * 2,
    b'[{"timestamp": "2024-05-12T00:00:01Z", "isl": 5, "osl": 6, "session_id": "x", "think_ms": 9}]',
    b"timestamp;isl;osl;ttft_ms\n1.5;5;6;100\n0.5;5;6;\n",
]


def assert_read_or_refused(path: Path) -> None:
    """The file reads as a workload with requests, or is refused in one line."""
    message = ""
    try:
        requests = len(read(path, rate_per_s=1.0))
    except InputError as error:
        message = str(error)
    assert ("\n" not in message and len(message) < 1000) if message else requests > 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(VALID),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 5), st.binary(max_size=6)), min_size=1, max_size=4
    ),
    packed=st.booleans(),
)
def test_corruption_never_crashes(
    tmp_path: Path, base: bytes, edits: list[tuple[float, int, bytes]], packed: bool
) -> None:
    """A file with random bytes replaced reads as a valid workload or raises InputError, nothing else."""
    content = gzip.compress(base, mtime=0) if packed else base
    for place, length, new in edits:
        at = int(place * len(content))
        content = content[:at] + new + content[at + length :]
    path = tmp_path / "fuzzed"
    path.write_bytes(content)
    assert_read_or_refused(path)


FIELDS = (
    "arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "slo_class", "weight", "priority", "request_id",
    "predicted_output_tokens", "prefix_ids", "prefix_block_tokens", "timestamp", "input_length", "hash_ids",
    "output_length", "chat_id", "parent_chat_id", "usage", "created", "response", "metadata", "metrics",
    "error", "input_lens", "output_lens", "start_times", "errors", "session", "think_ms", "data",
)  # fmt: skip
TRICKY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["usage", "prompt_tokens", "completion_tokens", "value"]), st.integers()),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(FIELDS),
        TRICKY,
    )
)
def test_odd_json_values(tmp_path: Path, row: dict[str, object]) -> None:
    """JSON values of the wrong kind or size in any field raise InputError and nothing else."""
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert_read_or_refused(path)


RECORDS = [
    {"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 6, "ttft_ms": 9, "session": "a", "think_s": 1},
    {"timestamp": 2.5, "isl": 5, "osl": 6, "user": "u", "weight": 2, "priority": 1},
    {"timestamp": 1, "input_length": 20, "output_length": 5, "hash_ids": [1]},
    {"chat_id": 1, "parent_chat_id": 0, "timestamp": 1, "input_length": 9,
      "output_length": 5, "hash_ids": []},
    {"TIMESTAMP": "2024-05-12 00:00:01", "ContextTokens": 5, "GeneratedTokens": 6},
    {"Timestamp": 5, "Request tokens": 5, "Response tokens": 6},
    {"session": 1, "agent": "m", "t_s": 1, "input_tokens": 9, "output_tokens": 2, "reused_prefix_tokens": 3},
    {"input_lens": [3], "output_lens": [5], "start_times": [1.5], "errors": [""]},
    {"metadata": {"request_start_ns": 5}, "metrics": {"input_sequence_length": {"value": 4}}, "error": None},
    {"created": 17, "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "response": None},
]  # fmt: skip
WRONG: tuple[object, ...] = (
    None, True, 0, -1, 2**70, 10**400, 1.5, float("nan"), "", "x", "\ud800", [], [None], {}, {"usage": {}},
)  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: next(iter(record)))
def test_any_key_may_be_missing_or_wrong_in_any_row(tmp_path: Path, record: dict[str, object]) -> None:
    """Every key of every format, in the first row or the last, absent or of another kind: read or refused."""
    path = tmp_path / "odd.jsonl"
    for key in record:
        absent = {name: value for name, value in record.items() if name != key}
        for changed in (absent, *(record | {key: value} for value in WRONG)):
            for rows in ([changed, record], [record, changed]):
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                assert_read_or_refused(path)


def test_no_half_written_output(tmp_path: Path) -> None:
    """A write that fails leaves the old file and no temporary one."""
    w = Workload.plain(np.arange(3.0), np.ones(3, dtype=np.int64), np.ones(3, dtype=np.int64))
    target = tmp_path / "w.csv"
    target.write_text("old")
    broken = Workload.plain(np.arange(3.0), np.ones(3, dtype=np.int64), np.ones(3, dtype=np.int64))
    object.__setattr__(broken, "class_index", np.array([0, 0, 7]))
    with pytest.raises(IndexError):
        write(broken, target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["w.csv"]
    with pytest.raises(DataError, match="can be written"):
        write(w, tmp_path / "absent" / "w.csv")
    with pytest.raises(DataError, match=r"ends in \.csv"):
        write(w, tmp_path / "w.parquet")
    with pytest.raises(DataError, match="not empty"):
        write(w.rows(np.zeros(3, dtype=bool)), target)
