"""A small Llama made on the spot: configuration and tokenizer, weights left to vLLM's dummy loader."""

from __future__ import annotations

import json
from pathlib import Path

from slosched.core.errors import MissingExtraError

VOCABULARY = 512


def make_local_model(
    folder: str | Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 2,
    length: int = 2048,
) -> Path:
    """Write ``config.json`` and a tokenizer; start vLLM with ``--load-format dummy`` on the folder.

    Parameters
    ----------
    folder
        Where to write; made if absent.
    hidden, layers, heads, kv_heads
        Size of the model. 1024, 16, 16, 4 takes tens of milliseconds a step on two cores.
    length
        Longest prompt plus answer in tokens.

    Raises
    ------
    MissingExtraError
        If the tokenizers package, which vLLM brings along, is not installed.
    """
    try:
        from tokenizers import (  # type: ignore[import-not-found, unused-ignore]
            Tokenizer,
            decoders,
            models,
            pre_tokenizers,
        )
    except ImportError as error:
        raise MissingExtraError("tokenizers", "vllm") from error
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": length,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": length,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target
