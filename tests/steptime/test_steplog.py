"""Reading step-time logs, and refusing bad ones by file, row and field."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import DataError
from slosched.core.steplog import COLUMNS, StepLogWriter, read_step_log

HEADER = ",".join(COLUMNS)
GOOD = f"{HEADER}\n0,0,4,4000,0.01\n512,131072,3,2000,0.031\n"


def test_csv_jsonl_and_gzip_read_alike(tmp_path: Path) -> None:
    """The same steps in CSV, in JSONL, plain or gzipped, give the same arrays."""
    rows = [dict(zip(COLUMNS, map(float, line.split(",")), strict=True)) for line in GOOD.split()[1:]]
    lines = "".join(json.dumps(row | {"note": "x"}) + "\n" for row in rows)
    for name, text in (("a.csv", GOOD), ("b.jsonl", lines)):
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    logs = [read_step_log(tmp_path / name) for name in ("a.csv", "a.csv.gz", "b.jsonl", "b.jsonl.gz")]
    for log in logs:
        assert len(log) == 2
        assert log.prefill_tokens.tolist() == [0, 512]
        assert log.seconds.tolist() == [0.01, 0.031]
        assert log.kv_tokens.tolist() == [4000, 2000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file must be not empty, got 'no rows'"),
        ("\n\n", "file must be not empty, got 'no rows'"),
        (HEADER + "\n", "file must be not empty, got 'no rows'"),
        (
            "prefill_tokens,seconds\n1,2\n",
            "header must be columns .*attention_work.*, got 'prefill",
        ),
        (f"{HEADER},seconds\n1,1,1,1,1,1\n", "header must be distinct columns, got 'seconds twice'"),
        (f"{HEADER}\n1,1,1,1,1\n1,1,1,nan,1\n", r"row 2: kv_tokens must be .*, got 'nan'"),
        (f"{HEADER}\n1,1,-2,1,1\n", r"row 1: sequences must be a finite number of at least 0, got '-2'"),
        (f"{HEADER}\n1,1,1,1,0\n", r"row 1: seconds must be a finite number above 0, got '0'"),
        (f"{HEADER}\n1,1,1,1,inf\n", r"row 1: seconds must be"),
        (f"{HEADER}\n1,1,1,1,fast\n", r"row 1: seconds must be .*, got 'fast'"),
        (f"{HEADER}\n1,1,1,1\n", r"row 1: row must be 5 fields, got '4 fields'"),
        ('{"prefill_tokens": 1}\n', r"header must be columns .*attention_work.*, got 'prefill_tokens'"),
        ('{"prefill_tokens": \n', r"file must be JSON"),
        (json.dumps(dict.fromkeys(COLUMNS, True)), r"row 1: prefill_tokens must be .*, got True"),
        (json.dumps(dict.fromkeys(COLUMNS, None)), r"row 1: prefill_tokens must be .*, got None"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    """Each fault gives one line naming file, row, field, domain and value."""
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_step_log(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    """Spreadsheets write one; the trace readers took it and this one did not."""
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_step_log(path).seconds.tolist() == [0.01, 0.031]


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    """A gzip file cut off in the middle is refused, not read in part."""
    path = tmp_path / "log.csv.gz"
    packed = gzip.compress((GOOD + "0,0,7,9000,0.012\n" * 5000).encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="file must be a whole gzip file"):
        read_step_log(path)


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    """A path that leads nowhere, a folder and bytes that are no text are refused."""
    with pytest.raises(DataError, match="No such file"):
        read_step_log(tmp_path / "none.csv")
    with pytest.raises(DataError, match="a readable file"):
        read_step_log(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"\x80\x81\x00\x01" * 10)
    with pytest.raises(DataError, match="UTF-8"):
        read_step_log(tmp_path / "bytes.csv")


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_read_or_refused_clearly(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever stands after the header, the reader returns valid steps or a DataError."""
    path = tmp_path_factory.mktemp("any") / "log.csv"
    path.write_text(f"{HEADER}\n1,1,1,1,1\n{text}", encoding="utf-8", errors="replace")
    try:
        log = read_step_log(path)
    except DataError:
        return
    assert np.all(np.isfinite(log.seconds))
    assert np.all(log.seconds > 0)


def test_a_log_that_cannot_be_written_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The caller goes on; whoever reads the log learns why there are no steps."""
    (tmp_path / "file").write_text("")
    writer = StepLogWriter(tmp_path / "file" / "steps.csv")
    writer.add(0, 0, 8, 4000, 0.011)
    writer.close()
    assert isinstance(writer.error, OSError)
    assert [record.message for record in caplog.records] == [
        f"slosched: no step is logged any more: {writer.error}"
    ]
