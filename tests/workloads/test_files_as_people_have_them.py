"""Names, units and containers of public traces and tools are recognised, said, and never guessed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import DEFAULT_ENGINE
from slosched.core.errors import DataError, InputError
from slosched.core.reading import text_lines
from slosched.simulator import simulate
from slosched.workloads import Workload, read, write
from slosched.workloads.readers import sniff
from slosched.workloads.sources import Replayed, TraceFile, trace_source


def said(path: Path, **options: Any) -> tuple[Workload, str]:
    """The workload of a file, and the sentence on what was recognised."""
    words: list[str] = []
    workload = read(path, said=words.append, **options)
    assert len(words) == 1
    return workload, words[0]


def table(folder: Path, header: str, *rows: str, name: str = "t.csv") -> Path:
    """A small file."""
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def jsonl(folder: Path, rows: list[dict[str, Any]], name: str = "t.jsonl") -> Path:
    """A small file of JSON lines."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "step", "unit"),
    [
        (1.7163e9, 0.5, "seconds"),
        (1716300000500, 500, "milliseconds"),
        (1716300000500123456, 5e8, "nanoseconds"),
    ],
)
def test_dates_since_1970_count_from_the_first_arrival(
    tmp_path: Path, first: float, step: float, unit: str
) -> None:
    """A date as a number, in any unit, gives a trace that starts at 0 and simulates."""
    rows = [f"{first + i * step!r},100,20" for i in range(20)]
    workload, words = said(table(tmp_path, "timestamp,input_tokens,output_tokens", *rows))
    assert workload.arrival_s == pytest.approx(np.arange(20) * 0.5, abs=1e-3)
    assert unit in words
    assert "since 1970" in words
    run = simulate(workload, "fcfs")
    assert 0 < float(run.outcomes.ttft_s.min()) < 1


def test_our_own_column_may_hold_dates_too(tmp_path: Path) -> None:
    """Dates in arrival_s are no offset to wait for; any other start is kept."""
    rows = [f"{1716300000.5 + i / 2},100,20,chat" for i in range(5)]
    workload, _ = said(table(tmp_path, "arrival_s,prompt_tokens,output_tokens,slo_class", *rows))
    assert workload.arrival_s.tolist() == [0, 0.5, 1, 1.5, 2]
    late, _ = said(table(tmp_path, "arrival_s,prompt_tokens,output_tokens", "5,1,1", "6,1,1"))
    assert late.arrival_s.tolist() == [5, 6]


def test_a_clock_that_would_overflow_is_refused() -> None:
    """Picoseconds in 64 bits end after 106 days: refused before, never a negative latency."""
    work = Workload.plain(np.array([0.0, 1.0e7]), np.array([5, 5]), np.array([5, 5]))
    with pytest.raises(InputError, match=r"arrival_s must be at most 8e\+06 s \(93 days\)"):
        simulate(work, "fcfs")


def hashes(times: list[float]) -> list[dict[str, Any]]:
    """Records with Mooncake's keys at these times."""
    return [
        {"timestamp": t, "input_length": 12, "output_length": 20, "hash_ids": [i]}
        for i, t in enumerate(times)
    ]


@pytest.mark.parametrize(
    ("times", "seconds", "evidence"),
    [
        ([i / 2 for i in range(60)], 0.5, "as milliseconds 2e+03/s"),  # fractions at 2/s
        (list(range(60)), 1.0, "as milliseconds 1e+03/s"),  # whole seconds at 1/s
        ([300 * i for i in range(60)], 0.3, "milliseconds"),  # 3.3/s in ms, one in 5 minutes in s
        ([10 * i for i in range(60)], 0.01, "as published"),  # 0.1/s or 100/s: Mooncake's page says ms
    ],
)
def test_units_are_told_apart_by_evidence(
    tmp_path: Path, times: list[float], seconds: float, evidence: str
) -> None:
    """Mooncake's keys with seconds in them are seconds."""
    workload, words = said(jsonl(tmp_path, hashes(times)))
    assert np.diff(workload.arrival_s) == pytest.approx(np.full(59, seconds))
    assert evidence in words


def test_bailian_blocks_and_seconds(tmp_path: Path) -> None:
    """Alibaba's traces have Mooncake's keys and more, seconds, and blocks of 16 tokens."""
    rows = [
        row | {"chat_id": i, "parent_chat_id": -1, "type": "text", "turn": 1}
        for i, row in enumerate(hashes([0.0, 4.0, 10.0]))
    ]
    rows[1] |= {"input_length": 40, "hash_ids": [1, 2, 3]}
    path = jsonl(tmp_path, rows)
    workload, words = said(path)
    assert sniff(path) == "bailian"
    assert workload.arrival_s.tolist() == [0, 4, 10]
    assert workload.prefix is not None
    assert workload.prefix.block_tokens == 16
    assert "not used: type, turn." in words
    assert "sessions known, think times not: open loop" in words


def test_bailian_sessions_follow_their_parents(tmp_path: Path) -> None:
    """A chat with a parent is a turn of the parent's session."""
    rows = [
        row | {"chat_id": i, "parent_chat_id": parent, "type": "text", "turn": 1}
        for i, (row, parent) in enumerate(zip(hashes([0.0, 4.0, 10.0, 11.0]), [-1, 0, -1, 1], strict=True))
    ]
    workload = read(jsonl(tmp_path, rows))
    assert workload.session.tolist() == [0, 0, 2, 0]
    assert workload.turn.tolist() == [0, 1, 0, 2]
    assert not np.any(workload.previous >= 0)


def test_a_unit_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    """One request in 10 s or 100 a second: both happen, so nobody guesses."""
    path = table(tmp_path, "time,input_tokens,output_tokens", *(f"{10 * i},5,5" for i in range(20)))
    with pytest.raises(InputError, match=r"the unit of time must be named.*FILE@s or FILE@ms"):
        read(path)
    assert read(path, time_unit="ms").arrival_s[-1] == pytest.approx(0.19)
    assert read(path, time_unit="s").arrival_s[-1] == 190
    with pytest.raises(InputError, match="time_unit must be one of s, ms, us, ns, got 'h'"):
        read(path, time_unit="h")
    file = TraceFile.of(f"{path}=chat@ms")
    assert (file.path, file.slo_class, file.time_unit) == (path, "chat", "ms")
    assert TraceFile.of(f"{path}@ms").time_unit == "ms"


@pytest.mark.parametrize("name", ["a=b.csv", "mail@ms", "plain.csv"])
def test_a_file_that_exists_is_a_file(tmp_path: Path, name: str) -> None:
    """Whatever its name holds."""
    path = tmp_path / name
    path.touch()
    assert TraceFile.of(str(path)) == TraceFile(path=path)
    assert TraceFile.of(f"{path}=chat@s") == TraceFile(path=path, slo_class="chat", time_unit="s")


# columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "request_id,timestamp,input_tokens,output_tokens",  # ServeGen
        "id,arrived_at,num_prefill_tokens,num_decode_tokens",  # Vidur
        "x,Arrival Time (s),Prompt Length,Output Length",
        "x,start_time,isl,osl",
        "x,createdAt,promptTokens,completionTokens",
    ],
)
def test_names_that_tools_use(tmp_path: Path, header: str) -> None:
    """Times, prompts and answers are found under the names of public traces and tools."""
    workload, words = said(table(tmp_path, header, "a,0.0,100,20", "b,0.5,101,21", "c,1.5,102,22"))
    assert workload.arrival_s.tolist() == [0, 0.5, 1.5]
    assert workload.prompt_tokens.tolist() == [100, 101, 102]
    assert workload.output_tokens.tolist() == [20, 21, 22]
    first = header.split(",")[0]
    assert ("every column used" in words) == (first == "request_id")
    assert (f"not used: {first}." in words) == (first != "request_id")


def test_limits_in_milliseconds_are_limits(tmp_path: Path) -> None:
    """A limit's unit is in its name; without one it is named as unused, with the reason."""
    path = table(tmp_path, "arrival_s,prompt_tokens,output_tokens,ttft_ms,tpot_ms,e2e", "1,5,5,500,50,9")
    workload, words = said(path)
    assert (workload.ttft_s[0], workload.tpot_s[0], workload.e2e_s[0]) == (0.5, 0.05, np.inf)
    assert "ttft_ms (milliseconds)" in words
    assert "not used: e2e (its name must end in a unit, e2e_s or e2e_ms)." in words
    bad = table(tmp_path, "arrival_s,prompt_tokens,output_tokens,ttft_ms", "1,5,5,-1")
    with pytest.raises(
        DataError, match="ttft_ms must be a number of milliseconds above 0, or empty, got '-1'"
    ):
        read(bad)


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    """A file without times or lengths is refused with the columns it has."""
    with pytest.raises(DataError, match="got 'when, words_in, words_out'"):
        read(table(tmp_path, "when,words_in,words_out", "1,2,3"))


def test_failed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    """A row without answer tokens failed; in Azure's trace it no longer refuses the whole file."""
    azure = table(
        tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2024-05-12 00:00:00.003921+00:00,2162,5", "2024-05-12 00:00:01+00:00,2399,0",
    )  # fmt: skip
    workload, words = said(azure)
    assert len(workload) == 1
    assert "1 row left out" in words
    assert "1 row left out" in workload.source
    other = table(tmp_path, "timestamp,input_tokens,output_tokens", "0.5,5,5", "1.0,5,0", "1.5,5,")
    assert len(said(other)[0]) == 1
    with pytest.raises(DataError, match="GeneratedTokens must be above 0 in some row"):
        read(table(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", "2024-05-12 00:00:01,9,0"))


def test_rows_out_of_order_are_sorted_and_that_is_said(tmp_path: Path) -> None:
    """Logs are in order of the ends of requests."""
    workload, words = said(table(tmp_path, "timestamp,isl,osl", "3.5,3,1", "0.5,1,1", "2.5,2,1"))
    assert workload.prompt_tokens.tolist() == [1, 2, 3]
    assert workload.arrival_s.tolist() == [0, 2, 3]
    assert "sorted by time" in words


@pytest.mark.parametrize("cells", [('"1,200"', "20"), ("1 200", "2e1"), ("1200.0", "20"), ("1'200", " 20 ")])
def test_lengths_as_spreadsheets_write_them(tmp_path: Path, cells: tuple[str, str]) -> None:
    """Thousands apart, with a point and nothing behind it, with an exponent."""
    rows = [f"{i / 2},{cells[0]},{cells[1]}" for i in range(4)]
    workload = read(table(tmp_path, "timestamp,input_tokens,output_tokens", *rows))
    assert workload.prompt_tokens.tolist() == [1200] * 4
    assert workload.output_tokens.tolist() == [20] * 4


@pytest.mark.parametrize("cell", ["1,20", "12,0000", "1,200,20", "1.200,5", "1,200 300", "0x10", "-1,200"])
def test_what_is_no_whole_number_is_no_length(tmp_path: Path, cell: str) -> None:
    """Nothing is made of a cell that could mean two things."""
    with pytest.raises(DataError, match="input_tokens must be an integer from 1"):
        read(table(tmp_path, "timestamp,input_tokens,output_tokens", f'0.5,"{cell}",5'))


@pytest.mark.parametrize("word", ["nan", "NULL", "None", "N/A", "-", ""])
def test_words_for_nothing_are_no_values(tmp_path: Path, word: str) -> None:
    """A length that a tool did not know leaves its row out; a label may be such a word."""
    header = "timestamp,input_tokens,output_tokens,slo_class"
    path = table(tmp_path, header, f"0.5,5,{word},a", "1.0,5,5,none", f"1.5,5,5,{word}")
    workload, words = said(path)
    assert "1 row left out: no prompt or no answer tokens" in words
    labels = [workload.classes[i] for i in workload.class_index.tolist()]
    assert labels == ["none", word or "default"]


def test_an_azure_log_of_ones_own_need_not_be_sorted(tmp_path: Path) -> None:
    """Sorted, and said to be; lengths go with their times."""
    rows = [f"2023-11-16 18:15:{9 - i:02d}.5,{100 + i},7" for i in range(4)]
    workload, words = said(table(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", *rows))
    assert workload.arrival_s.tolist() == [0, 1, 2, 3]
    assert workload.prompt_tokens.tolist() == [103, 102, 101, 100]
    assert "sorted by time" in words


def test_times_that_have_lost_their_digits_are_seen(tmp_path: Path) -> None:
    """A spreadsheet leaves 1.7163E+09 of every date: all at once, which the sentence says."""
    rows = ["1.7163E+09,5,5"] * 4
    assert "4 requests, all at the same time" in said(table(tmp_path, "timestamp,isl,osl", *rows))[1]


def test_a_file_whose_time_has_another_name_says_which_names_it_has(tmp_path: Path) -> None:
    """The end of a request is not its arrival."""
    path = table(tmp_path, "end_time,prompt_tokens,completion_tokens", "2024-05-12 10:00:00,5,5")
    with pytest.raises(InputError, match=r"no column known as the time of arrival \(end_time, prompt_tokens"):
        read(path)


# containers -------------------------------------------------------------------------------------------------


def pack_zstd(content: bytes) -> bytes:
    """Zstandard in two frames, as tools that append write it."""
    zstandard = pytest.importorskip("zstandard")
    half = len(content) // 2
    frames = [zstandard.compress(part) for part in (content[:half], content[half:])]
    return bytes(b"".join(frames))


def test_packed_and_marked_files_read_alike(tmp_path: Path) -> None:
    """Plain, gzip, Zstandard, byte-order mark, semicolons, Windows line ends: one workload."""
    text = b"arrival_s,prompt_tokens,output_tokens\n0,5,6\n1.5,7,8\n"
    forms = {
        "plain": text, "gzip": gzip.compress(text), "zstd": pack_zstd(text), "mark": b"\xef\xbb\xbf" + text,
        "windows": text.replace(b"\n", b"\r\n"), "semicolons": text.replace(b",", b";"),
    }  # fmt: skip
    for name, content in forms.items():
        path = tmp_path / name
        path.write_bytes(content)
        workload = read(path)
        assert workload.arrival_s.tolist() == [0, 1.5], name
        assert workload.output_tokens.tolist() == [6, 8], name


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_zstandard_is_refused(tmp_path: Path, share: float) -> None:
    """A file that is cut short is never a shorter trace."""
    zstandard = pytest.importorskip("zstandard")
    lines = "".join(f"{i},{i % 7 + 1},5\n" for i in range(5000))
    packed = zstandard.compress(f"arrival_s,prompt_tokens,output_tokens\n{lines}".encode())
    path = tmp_path / "cut.csv.zst"
    path.write_bytes(packed[: 8 + int(share * (len(packed) - 8))])
    with pytest.raises(DataError, match="a whole Zstandard file, got 'a truncated one'"):
        read(path)


@pytest.mark.parametrize("ending", ["csv.zst", "jsonl.zst"])
def test_what_is_written_packed_is_read_back(tmp_path: Path, ending: str) -> None:
    """The writer packs by the ending of the name."""
    pytest.importorskip("zstandard")
    work = Workload.plain(np.array([0.0, 0.1]), np.array([3, 4]), np.array([5, 6]))
    path = write(work, tmp_path / f"w.{ending}")
    assert path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert np.array_equal(read(path).arrival_s, work.arrival_s)


def test_parquet_is_a_table_like_any_other(tmp_path: Path) -> None:
    """Columns of a Parquet file are recognised like those of a CSV file, dates included."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    times = np.array(["2024-05-12T00:00:00.5", "2024-05-12T00:00:02"], dtype="datetime64[us]")
    path = tmp_path / "t.parquet"
    columns = {"TIMESTAMP": times, "ContextTokens": [10, 11], "GeneratedTokens": [5, 6], "node": [1, 2]}
    parquet.write_table(pyarrow.table(columns), path)
    workload, words = said(path)
    assert sniff(path) == "azure"
    assert workload.arrival_s.tolist() == [0, 1.5]
    assert "not used: node." in words
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a whole Parquet file"):
        read(path)


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """U+2028, U+0085 and a lone carriage return are text."""
    path = tmp_path / "t.jsonl"
    prompts = ["first\u2028second\u0085third", "a\rb", "plain"]
    path.write_text("".join(json.dumps({"p": p}, ensure_ascii=False) + "\n" for p in prompts), newline="")
    assert [json.loads(line)["p"] for _, line in text_lines(path)] == prompts


# tools ------------------------------------------------------------------------------------------------------


def test_vllm_save_detailed(tmp_path: Path) -> None:
    """Requests of vLLM's own benchmark: sent when they were, failed ones counted, measurements named."""
    result = {
        "date": "20251128", "num_prompts": 4, "input_lens": [10, 11, 12, 13], "output_lens": [5, 6, 0, 7],
        "ttfts": [0.1, 0.1, 0.0, 0.1], "itls": [[0.1], [0.1], [], [0.1]],
        "start_times": [5000.0, 5002.5, 5001.0, 5001.5], "errors": ["", "", "boom", ""],
    }  # fmt: skip
    for text in (json.dumps(result), json.dumps(result, indent=2)):
        path = tmp_path / "result.json"
        path.write_text(text)
        workload, words = said(path)
        assert workload.arrival_s.tolist() == [0, 1.5, 2.5]
        assert workload.prompt_tokens.tolist() == [10, 13, 11]
        assert "1 row left out: failed requests" in words
        assert "ttfts (measured, not a limit)" in words
    path.write_text(json.dumps(result | {"output_lens": [1]}))
    with pytest.raises(DataError, match="output_lens must be a list of 4"):
        read(path)
    del result["start_times"]
    path.write_text(json.dumps(result))
    with pytest.raises(DataError, match="start_times must be given"):
        read(path)


def aiperf(start_ns: int, prompt: int, output: int, **metadata: Any) -> dict[str, Any]:
    """One record of aiperf."""
    return {
        "metadata": {"request_start_ns": start_ns, "benchmark_phase": "profiling", **metadata},
        "metrics": {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
            "time_to_first_token": {"value": 255.9, "unit": "ms"},
        },
        "error": None,
    }


def test_aiperf_export(tmp_path: Path) -> None:
    """Records of aiperf, in order of the ends: sorted; failures and warm-up counted."""
    start = 1759813207532900363
    rows = [
        aiperf(start + 2_000_000_000, 12, 3), aiperf(start, 10, 9),
        aiperf(start, 10, 9, benchmark_phase="warmup"), aiperf(start, 10, 9, was_cancelled=True),
        aiperf(start, 10, 9) | {"metrics": {"error_isl": {"value": 5}}, "error": {"code": 499}},
    ]  # fmt: skip
    workload, words = said(jsonl(tmp_path, rows))
    assert workload.arrival_s == pytest.approx([0, 2.0], abs=1e-6)
    assert workload.output_tokens.tolist() == [9, 3]
    assert "2 rows left out: failed requests" in words
    assert "1 row left out: not of the profiling phase" in words


def test_aiperf_sessions_are_closed_loops(tmp_path: Path) -> None:
    """The pause between an answer and the next turn of its session is think time."""
    start = 1759813207532900363
    rows = [
        aiperf(start, 10, 9, x_correlation_id="a", request_end_ns=start + 10**9),
        aiperf(start + 4 * 10**9, 30, 9, x_correlation_id="a", request_end_ns=start + 5 * 10**9),
        aiperf(start + 10**9, 10, 9, x_correlation_id="b", request_end_ns=start + 3 * 10**9),
    ]
    workload, words = said(jsonl(tmp_path, rows))
    assert workload.session.tolist() == [0, -1, 0]
    assert workload.think_s == pytest.approx([-1, -1, 3.0], abs=1e-6)
    assert workload.previous.tolist() == [-1, -1, 0]
    assert "turns of sessions in a closed loop" in words


def test_openai_style_logs(tmp_path: Path) -> None:
    """Answers with their usage: bare, beside their request, and as a batch file has them."""
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    answer = {"id": "x", "object": "chat.completion", "model": "m", "choices": [], "usage": usage}
    bare = [answer | {"created": 1716300000 + i} for i in (0, 1, 3)]
    logged = [
        {"time": f"2024-05-21T14:00:0{i}Z", "request": {}, "response": row} for i, row in enumerate(bare)
    ]
    batch = [
        {"custom_id": str(i), "response": {"status_code": 200, "body": row}} for i, row in enumerate(bare)
    ]
    batch.append({"custom_id": "3", "response": {"status_code": 500, "body": {}}})
    for rows, times in ((bare, [0, 1, 3]), (logged, [0, 1, 2]), (batch, [0, 1, 3])):
        path = jsonl(tmp_path, rows)
        workload, words = said(path)
        assert sniff(path) == "openai"
        assert workload.arrival_s.tolist() == times
        assert workload.prompt_tokens.tolist() == [9, 9, 9]
    assert "1 row left out: failed requests" in words


def test_cached_tokens_of_anthropic_answers_are_of_the_prompt(tmp_path: Path) -> None:
    """Their usage counts them beside input_tokens, where OpenAI's counts them within prompt_tokens."""
    usage = {"input_tokens": 9, "cache_read_input_tokens": 2000, "cache_creation_input_tokens": 50}
    rows = [{"time": 1716300000.5, "response": {"type": "message", "usage": usage | {"output_tokens": 4}}}]
    assert read(jsonl(tmp_path, rows)).prompt_tokens.tolist() == [2059]
    details = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    assert read(jsonl(tmp_path, [{"created": 1716300000, "usage": details}])).prompt_tokens.tolist() == [9]


def test_open_telemetry_names(tmp_path: Path) -> None:
    """Flat attributes of spans of generative models."""
    names = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    rows = [{"timestamp": 1716300000 * 10**9 + i * 10**9, names[0]: 9, names[1]: 4} for i in range(3)]
    workload, words = said(jsonl(tmp_path, rows))
    assert workload.arrival_s.tolist() == [0, 1, 2]
    assert "every column used" in words


def guidellm(start_s: float, *, new: bool) -> dict[str, Any]:
    """A request of a GuideLLM report, as older and newer releases write it."""
    if not new:
        return {"request_id": "a", "start_time": start_s, "prompt_tokens": 100, "output_tokens": 20}
    return {
        "info": {"timings": {"request_start": start_s, "request_end": start_s + 1}},
        "input_metrics": {"text_tokens": 100}, "output_metrics": {"text_tokens": 20},
    }  # fmt: skip


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_guidellm_reports(tmp_path: Path, new: bool, indent: int | None) -> None:
    """All benchmarks of a report, in order of time; what failed is counted."""
    first = 1716300000.0
    runs = [
        {
            "requests": {
                "successful": [guidellm(first + 100 * run + i, new=new) for i in (1, 0)],
                "incomplete": [guidellm(first, new=new)], "errored": [],
            }
        }
        for run in range(2)
    ]  # fmt: skip
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"metadata": {}, "benchmarks": runs}, indent=indent))
    workload, words = said(path)
    assert sniff(path) == "guidellm"
    assert workload.arrival_s.tolist() == [0, 1, 100, 101]
    assert workload.prompt_tokens.tolist() == [100] * 4
    assert "2 rows left out: failed requests" in words
    assert "2 benchmarks, one after the other" in words
    path.write_text('{"benchmarks": 7}')
    with pytest.raises(DataError, match="benchmarks must be a list, got '7'"):
        read(path)


# replay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.3, 10.0, 900.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_rate_is_that_rate_whatever_the_length_of_the_trace(seconds: float, seed: int) -> None:
    """A short trace is repeated as it is, not as bursts with a minute's silence between."""
    n = 20
    trace = Workload.plain(np.linspace(0, seconds, n), np.full(n, 9), np.full(n, 5))
    arrival = Replayed(trace=trace, forecast=None)(2.0, seed).arrival_s
    assert (len(arrival) - 1) / (arrival[-1] - arrival[0]) == pytest.approx(2.0)
    assert float(np.diff(arrival).max()) <= 1.1  # evenly spaced before: no gap of twice the mean


def test_without_a_rate_a_trace_is_replayed_as_it_is(tmp_path: Path) -> None:
    """Its own times, its own order, its own predictions, the same for every seed."""
    header = "arrival_s,prompt_tokens,output_tokens,slo_class,predicted_output_tokens"
    path = table(tmp_path, header, "3,5,6,chat,9", "4,6,7,chat,9", "7,7,8,chat,9")
    engine = DEFAULT_ENGINE
    source = trace_source([TraceFile(path=path)], engine=engine, requests=2)
    for seed in (0, 5):
        replay = source(None, seed)
        assert replay.arrival_s.tolist() == [0, 1]
        assert replay.prompt_tokens.tolist() == [5, 6]
        assert np.all(replay.atoms == 9)
    assert "first 2 of 3 requests" in replay.source


def test_a_log_that_holds_long_prompts_as_text_is_read(tmp_path: Path) -> None:
    """Python's csv stops at 131,072 characters; a prompt of 100,000 tokens has more."""
    text = "word " * 60_000
    path = table(tmp_path, "arrival_s,prompt_tokens,output_tokens,prompt", f"0,5,5,{text}", f"1,6,6,{text}")
    workload, words = said(path)
    assert workload.prompt_tokens.tolist() == [5, 6]
    assert "prompt" in words


def test_a_trace_without_limits_says_how_to_give_them(tmp_path: Path) -> None:
    """In the words of the command line, with a class that the file has."""
    path = table(tmp_path, "arrival_s,prompt_tokens,output_tokens,slo_class", "0,5,5,assist", "1,5,5,assist")
    with pytest.raises(InputError, match=r"--slo 'assist:ttft=1,tpot=0.05'.*FILE=chat"):
        trace_source([TraceFile.of(str(path))], engine=DEFAULT_ENGINE)


ROWS = "arrival_s,prompt_tokens,output_tokens\n0.5,100,20\n1.5,200,30\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("utf-16.csv", ROWS.replace("\n", "\r\n").encode("utf-16")),
        ("packed.csv.bz2", bz2.compress(ROWS.encode())),
        ("packed.csv.xz", lzma.compress(ROWS.encode())),
        ("pipes.txt", ROWS.replace(",", "|").encode()),
        ("remarks.csv", b"# exported, by a tool\n#\n" + ROWS.encode()),
        ("header_is_a_remark.csv", b"# run 7\n# " + ROWS.encode()),
    ],
)
def test_tables_as_tools_write_them(tmp_path: Path, name: str, content: bytes) -> None:
    """Marked UTF-16, other packing, pipes and remarks read as the plain table does."""
    path = tmp_path / name
    path.write_bytes(content)
    workload, words = said(path)
    assert workload.prompt_tokens.tolist() == [100, 200]
    assert workload.output_tokens.tolist() == [20, 30]
    assert workload.arrival_s.tolist() == [0.5, 1.5]
    assert "every column used" in words


@pytest.mark.parametrize(
    "content",
    [
        {"arrival_s": [0.5, 1.5], "prompt_tokens": [100, 200], "output_tokens": [20, 30]},
        {
            "arrival_s": {"0": 0.5, "1": 1.5},
            "prompt_tokens": {"0": 100, "1": 200},
            "output_tokens": {"0": 20, "1": 30},
        },
        {
            "columns": ["arrival_s", "prompt_tokens", "output_tokens"],
            "data": [[0.5, 100, 20], [1.5, 200, 30]],
        },
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_documents_of_columns(tmp_path: Path, content: dict[str, Any], indent: int | None) -> None:
    """JSON as data frames write it: lists, numbered objects, or rows under their columns."""
    path = tmp_path / "frame.json"
    path.write_text(json.dumps(content, indent=indent))
    workload = read(path)
    assert workload.arrival_s.tolist() == [0.5, 1.5]
    assert workload.prompt_tokens.tolist() == [100, 200]


@pytest.mark.parametrize(
    ("record", "used"),
    [
        (
            {"ts": 1.0, "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3}},
            "promptTokenCount",
        ),
        (
            {
                "timestamp": "2026-01-01T00:00:01Z",
                "input": {"inputTokenCount": 7},
                "output": {"outputTokenCount": 3},
            },
            "inputTokenCount",
        ),
        (
            {
                "timestamp": "2026-01-01T00:00:01Z",
                "out": {"meta_info": {"prompt_tokens": 7, "completion_tokens": 3}},
            },
            "prompt_tokens",
        ),
        (
            {"usage": {"input": 7, "output": 3}, "metadata": {"startTime": "2026-01-01T00:00:01Z"}},
            "usage.input",
        ),
        ({"usage": {"input": 7, "output": 3}, "startTime": "2026-01-01T00:00:01Z"}, "usage"),
    ],
)
def test_counts_within_objects(tmp_path: Path, record: dict[str, Any], used: str) -> None:
    """Logs of providers and tracers keep their counts within objects; what was read is named."""
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
    workload, words = said(path)
    assert workload.prompt_tokens.tolist() == [7, 7]
    assert workload.output_tokens.tolist() == [3, 3]
    assert used in words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04whatever", "Excel"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"SQLite format 3\x00", "SQLite"),
        (lzma.compress(ROWS.encode())[:70], "whole xz file"),
        (bz2.compress(ROWS.encode())[:70], "whole bzip2 file"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    """What people take for a table says what it is."""
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(path)


def test_decimal_commas_of_spreadsheets(tmp_path: Path) -> None:
    """Much of Europe writes 0,5; a column is read so only if its numbers can mean nothing else."""
    header = "arrival_s;prompt_tokens;output_tokens"
    workload, _ = said(table(tmp_path, header, "0,0;1,100;5", "0,5;1,200;6"))
    assert workload.arrival_s.tolist() == [0.0, 0.5]
    assert workload.prompt_tokens.tolist() == [1100, 1200]
    with pytest.raises(DataError, match="'1,100'"):
        read(table(tmp_path, header, "1,100;7;5", "1,200;7;6"))


def test_hashed_traces_of_other_engines(tmp_path: Path) -> None:
    """Blocks smaller than Mooncake's are told by the number of ids, and said; rows may have no ids at all."""
    rows: list[dict[str, Any]] = [
        {"timestamp": 0, "input_length": 130, "output_length": 4, "hash_ids": [1, 2, 3]},
        {"timestamp": 500, "input_length": 70, "output_length": 4},
        {"timestamp": 900, "input_length": 128, "output_length": 4, "hash_ids": [1, 2]},
    ]
    workload, words = said(jsonl(tmp_path, rows), time_unit="ms")
    assert workload.prefix is not None
    assert workload.prefix.block_tokens == 64
    assert np.diff(workload.prefix.offsets).tolist() == [3, 0, 2]
    assert "blocks of 64 tokens, told by how many ids" in words
    for row in rows:
        row.pop("hash_ids", None)
    plain, words = said(jsonl(tmp_path, [row | {"session_id": "a", "delay": 5} for row in rows]))
    assert plain.arrival_s.tolist() == [0.0, 0.5, 0.9]
    assert "milliseconds (as published)" in words
    assert "not used: delay" in words


def test_spans_of_open_telemetry(tmp_path: Path) -> None:
    """Attributes as an object or as a list of pairs; times in nanoseconds since 1970."""
    counts = {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3}
    listed = [{"key": key, "value": {"intValue": str(count)}} for key, count in counts.items()]
    for attributes in (counts, listed):
        rows: list[dict[str, Any]] = [
            {"startTimeUnixNano": str(1740823200000000000 + i * 500_000_000), "attributes": attributes}
            for i in range(3)
        ]
        workload, words = said(jsonl(tmp_path, rows))
        assert workload.arrival_s.tolist() == [0.0, 0.5, 1.0]
        assert workload.prompt_tokens.tolist() == [7, 7, 7]
        assert "nanoseconds (by its name" in words


@pytest.mark.parametrize("block", [1024, 2048])
def test_blocks_above_the_published_ones_are_told(block: int, tmp_path: Path) -> None:
    """Else half of every prompt would be taken for its own."""
    path = tmp_path / "t.jsonl"
    rows = [
        {
            "timestamp": 1000 * i,
            "input_length": n,
            "output_length": 5,
            "hash_ids": list(range(-(-n // block))),
        }
        for i, n in enumerate([3000, 5000, 1500, 9000])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload, words = said(path)
    assert workload.prefix is not None
    assert workload.prefix.block_tokens == block
    assert f"blocks of {block} tokens, told by how many ids" in words


def test_prompts_with_ids_for_a_part_are_named(tmp_path: Path) -> None:
    """What the ids leave out may be of other blocks than was believed."""
    path = tmp_path / "t.jsonl"
    row = {"timestamp": 0, "input_length": 3000, "output_length": 5, "hash_ids": [1, 2]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"input_length": 9000}) + "\n")
    assert "some prompts have ids for a part only, if blocks have 512 tokens" in said(path)[1]


def test_points_between_thousands_are_not_taken_for_fractions(tmp_path: Path) -> None:
    """A prompt of 1.000 tokens was read as one of 1."""
    path = tmp_path / "t.csv"
    path.write_text("timestamp;input_tokens;output_tokens\n0;1.000;20\n1;3.000;20\n")
    with pytest.raises(DataError, match="thousands not apart by points"):
        read(path)
