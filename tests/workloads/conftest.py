"""Where the public data lies, and small files in every format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of public traces; the test is skipped where it is absent."""
    folder = Path(os.environ.get("SLOSCHED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "traces").is_dir():
        pytest.skip("the folder of public traces is absent (name it in SLOSCHED_DATA)")
    return folder


SAMPLES = {
    "azure": (
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:17:03.9799600,4808,10\r\n"
        "2023-11-16 18:17:04.0319600,3180,8\r\n"
        "2023-11-16 18:17:04.0789640,110,27",
    ),
    "burstgpt": (
        "b.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,Conversation log\n"
        "118,GPT-4,417,276,693,API log\n",
    ),
    "lengths": ("l.csv", "input_tokens,output_tokens\n3742,284\n18,243\n7,1\n"),
    "csv": (
        "c.csv",
        "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s,slo_class,weight\n"
        "0.0,5,6,0.5,,chat,2\n"
        "1.5,7,8,,30,batch,\n",
    ),
    "jsonl": (
        "j.jsonl",
        '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6, "tpot_s": 0.05, "slo_class": "chat"}\n'
        '{"arrival_s": 2.5, "input_tokens": 7, "output_tokens": 8, "predicted_output_tokens": 20}\n',
    ),
    "mooncake": (
        "m.jsonl",
        '{"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 3000, "input_length": 1100, "output_length": 6, "hash_ids": [0, 1, 3]}\n',
    ),
    "agentic": (
        "g.csv",
        "session,agent,t_s,input_tokens,output_tokens,reused_prefix_tokens,api_time_s\n"
        "1,main,0.0,2000,169,0,7.34\n"
        "1,main,19.0,2600,296,1984,\n"
        "1,agent_001,20.0,900,3,0,1\n"
        "1,main,40.0,2700,0,2560,1\n",
    ),
}
"""{format: (file name, text)}"""


@pytest.fixture(params=sorted(SAMPLES))
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A format and a small file in it."""
    name, text = SAMPLES[request.param]
    path = tmp_path / name
    path.write_bytes(text.encode())
    return str(request.param), path
