"""Readers give what the files say."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.workloads import describe, read
from slosched.workloads.agentic import read_agentic
from slosched.workloads.readers import read_mooncake, sniff


def test_sniffed(sample: tuple[str, Path]) -> None:
    """Each format is told from its first line."""
    kind, path = sample
    assert sniff(path) == kind


def test_gzip_is_transparent(sample: tuple[str, Path]) -> None:
    """A gzip file reads like the plain one, whatever its name."""
    _, path = sample
    packed = path.with_name(f"packed-{path.name}")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain, again = read(path, rate_per_s=1.0), read(packed, rate_per_s=1.0)
    assert np.array_equal(plain.arrival_s, again.arrival_s)
    assert np.array_equal(plain.prompt_tokens, again.prompt_tokens)


def test_named_format_equals_sniffed(sample: tuple[str, Path]) -> None:
    """Naming the format changes nothing."""
    kind, path = sample
    assert np.array_equal(
        read(path, format=kind, rate_per_s=2.0).arrival_s, read(path, rate_per_s=2.0).arrival_s
    )


def write_text(folder: Path, text: str, name: str = "t.csv") -> Path:
    """A file of this text."""
    path = folder / name
    path.write_text(text)
    return path


def test_azure_times(tmp_path: Path) -> None:
    """Publisher time stamps become seconds from the first, to the microsecond."""
    path = write_text(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 23:59:59.9799600,4808,10\n2023-11-17 00:00:00.0319600,3180,8\n",
    )
    workload = read(path)
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 0.052], abs=1e-9)
    assert workload.prompt_tokens.tolist() == [4808, 3180]
    assert workload.output_tokens.tolist() == [10, 8]


def test_azure_2024_stamps_with_zone(tmp_path: Path) -> None:
    """Time stamps with a zone, as in the 2024 release, are read too."""
    path = write_text(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,10,1\n2024-05-10 00:00:01.009930+00:00,10,1\n",
    )
    assert read(path).arrival_s.tolist() == [0.0, 1.0]


def test_burstgpt_failures_counted(tmp_path: Path) -> None:
    """Failed requests are left out and their number is reported."""
    path = write_text(
        tmp_path,
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5.0,x,1,GPT-4,472,18,490,a\n45.0,x,1,GPT-4,1087,0,1087,a\n50,x,1,GPT-4,0,7,7,a\n118.0,x,1,GPT-4,417,276,693,a\n",
    )
    workload = read(path)
    assert workload.arrival_s.tolist() == [0.0, 113.0]
    assert "2 rows left out" in workload.source


def test_lengths_need_a_rate(tmp_path: Path) -> None:
    """A file without arrivals is refused without a rate, and has exactly its rows with one."""
    path = write_text(tmp_path, "input_tokens,output_tokens\n" + "10,20\n" * 50)
    with pytest.raises(InputError, match="rate_per_s"):
        read(path)
    assert len(read(path, rate_per_s=3.0, seed=1)) == 50


def test_rate_stretches_a_trace(tmp_path: Path) -> None:
    """A rate stretches the clock of a trace and keeps its pattern."""
    path = write_text(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,1,1\n4,1,1\n")
    workload = read(path, rate_per_s=1.0)
    assert workload.arrival_s.tolist() == [0.0, 0.5, 2.0]


def test_mooncake_jitter(tmp_path: Path) -> None:
    """Requests that share a quantised time stamp are spread within the clock's step, by seed."""
    rows = [
        f'{{"timestamp": {3000 * (i // 10)}, "input_length": 600, "output_length": 5, "hash_ids": [0, {i}]}}'
        for i in range(200)
    ]
    path = write_text(tmp_path, "\n".join(rows), "m.jsonl")
    one, same, other = (read_mooncake(path, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.arrival_s, same.arrival_s)
    assert not np.array_equal(one.arrival_s, other.arrival_s)
    assert len(np.unique(one.arrival_s)) == 200
    raw = np.repeat(np.arange(20) * 3.0, 10)
    assert np.all((one.arrival_s >= raw) & (one.arrival_s < raw + 3.0))
    assert read_mooncake(path, jitter_s=0.0).arrival_s.tolist() == raw.tolist()
    assert one.prefix is not None
    assert one.prefix.block_tokens == 512
    assert one.prefix.ids[::2].tolist() == [0] * 200


def test_agentic_prefixes(tmp_path: Path) -> None:
    """A turn shares exactly its reused whole blocks with the turn before of the same agent."""
    path = write_text(
        tmp_path,
        "session,agent,t_s,input_tokens,output_tokens,reused_prefix_tokens\n"
        "1,main,0,200,5,0\n1,sub,1,200,5,0\n1,main,10,300,5,190\n1,main,20,300,0,300\n2,main,0,200,5,0\n",
    )
    workload = read_agentic(path, block_tokens=64, seed=3)
    assert len(workload) == 4
    assert "1 rows without output" in workload.source
    assert workload.prefix is not None
    blocks = [
        workload.prefix.ids[a:b].tolist()
        for a, b in zip(workload.prefix.offsets[:-1], workload.prefix.offsets[1:], strict=True)
    ]
    grown = next(b for b, p in zip(blocks, workload.prompt_tokens.tolist(), strict=True) if p == 300)
    shared = [len(set(grown) & set(other)) for other in blocks if other is not grown]
    assert sorted(shared) == [0, 0, 2]  # 190 tokens hold two whole blocks of 64


def test_generic_columns(tmp_path: Path) -> None:
    """Limits, labels, weights and predictions of our own format arrive in their columns."""
    path = write_text(
        tmp_path,
        "request_id,arrival_s,prompt_tokens,output_tokens,ttft_s,tpot_s,e2e_s,slo_class,tenant,weight,priority,"
        "predicted_output_tokens,comment\n"
        "a,0,10,20,0.5,,,chat,x,2,1,25,hello\nb,1,11,21,,0.1,9,code,y,,,1 2 3 4 5 6 7 8,\n",
    )
    w = read(path)
    assert w.request_ids == ("a", "b")
    assert w.ttft_s.tolist() == [0.5, np.inf]
    assert w.tpot_s.tolist() == [np.inf, 0.1]
    assert w.e2e_s.tolist() == [np.inf, 9.0]
    assert (w.classes, w.tenants) == (("chat", "code"), ("x", "y"))
    assert w.weight.tolist() == [2.0, 1.0]
    assert w.priority.tolist() == [1, 0]
    assert w.atoms.tolist() == [[25.0] * 8, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]


def test_public_traces(data_folder: Path) -> None:
    """Every shipped trace reads, with the counts and burstiness its description states."""
    expected = {
        "azure2023_code.csv.gz": (8819, 13.2, None),
        "azure2023_conv.csv.gz": (19366, 1.09, None),
        "mooncake_conversation.jsonl.gz": (12031, 1.01, 0.37),
        "mooncake_synthetic.jsonl.gz": (3993, 1.01, 0.64),
        "mooncake_arxiv_first1000.jsonl.gz": (1000, 1.01, 0.38),
    }
    for name, (rows, cv, share) in expected.items():
        about = describe(read(data_folder / "traces" / name))
        assert about["requests"] == rows
        assert about["gap_cv"] == pytest.approx(cv, abs=0.05)
        assert about["prefix_share"] == (None if share is None else pytest.approx(share, abs=0.006))
