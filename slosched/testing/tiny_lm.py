"""A small language model of our own, for tests and demos where no pretrained weights can be had.

``python -m slosched.testing.tiny_lm OUT --seed 0`` trains a Llama of four layers on an instruction
language made here and saves it in Hugging Face's format with its tokenizer; vLLM loads the folder like any
other. As with real models, the length of an answer follows from what the prompt means, in part from chance,
and the model ends it by itself: "explain all rivers fully" gets a long answer unless "no instead name one
river" follows. Chance shows as the answer goes on: its first words say how many items there will be, where
the prompt left that open.

The prompt's own length says nothing: remarks of random length surround the request.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slosched.core.errors import MissingExtraError, require

SPECIAL = ("<unk>", "<s>", "</s>")
"""Words 0, 1, 2: unknown, begin, end."""

TOPICS = {
    topic: [f"{topic}-{i}" for i in range(24)]
    for topic in ("rivers", "birds", "tools", "songs", "cities", "metals", "games", "plants")
}
VERBS = {"name": 0.25, "list": 0.7, "describe": 1.4, "explain": 2.4}
"""Words an item gets, as a factor."""

AMOUNTS = {
    "one": (1, 1), "two": (2, 2), "three": (3, 3), "five": (5, 5), "eight": (8, 8), "twelve": (12, 12),
    "some": (2, 6), "several": (3, 10), "many": (8, 20), "all": (12, 20),
}  # fmt: skip
"""Least and most items of an answer; where they differ, chance decides."""

STYLES = {"briefly": 0.4, "": 1.0, "fully": 2.5}
REMARKS = [f"remark-{i}" for i in range(40)]
WORDS_PER_ITEM = 4.0
MOST_ITEMS = 20
MOST_WORDS = 24
CHOICE = 4
"""Words that may come next within an item."""
MOST_REMARKS = 24
LENGTH_TOKENS = 1024
"""Context of the model; no answer of the language comes near it."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a prompt asks for: verb, amount, topic, style, each a word of the language."""

    verb: str
    amount: str
    topic: str
    style: str


def vocabulary() -> list[str]:
    """Every word of the language; a word's place is its token number."""
    words = [*SPECIAL, "please", "no", "instead", "not", "?", ":", ".", "done"]
    words += [*TOPICS, *VERBS, *AMOUNTS, *(style for style in STYLES if style), *REMARKS]
    words += [f"#{k}" for k in range(1, MOST_ITEMS + 1)]
    return words + [word for topic in TOPICS.values() for word in topic]


def prompts(count: int, seed: int) -> list[str]:
    """Random prompts of the language.

    Parameters
    ----------
    count
        How many, at least 1.
    seed
        Equal seeds, equal prompts.

    Examples
    --------
    >>> prompts(2, seed=1) == prompts(2, seed=1)
    True
    """
    require(count >= 1, "count", "at least 1", count)
    rng = np.random.default_rng(seed)
    return [" ".join(_prompt(rng)[0]) for _ in range(count)]


def _prompt(rng: np.random.Generator) -> tuple[list[str], Meaning]:
    """A prompt's words and what it means: of two requests the last counts, "not" turns a style round."""
    words = _remarks(rng)
    asked, meaning = _request(rng)
    if rng.random() < 0.4:
        words += [*_request(rng)[0], "no", "instead"]
    words += [*asked, *_remarks(rng), "?"]
    return words, meaning


def _request(rng: np.random.Generator) -> tuple[list[str], Meaning]:
    verb, amount, topic, style = (_one(rng, names) for names in (VERBS, AMOUNTS, TOPICS, STYLES))
    words = ["please"] * int(rng.integers(2)) + [verb, amount, topic]
    if style and rng.random() < 0.4:
        words += ["not", "briefly" if style == "fully" else "fully"]
    elif style:
        words.append(style)
    return words, Meaning(verb, amount, topic, style)


def _remarks(rng: np.random.Generator) -> list[str]:
    return [REMARKS[i] for i in rng.integers(0, len(REMARKS), int(rng.integers(0, MOST_REMARKS + 1)))]


def _one(rng: np.random.Generator, names: Iterable[str]) -> str:
    known = list(names)
    return known[int(rng.integers(len(known)))]


def answer(meaning: Meaning, rng: np.random.Generator) -> list[str]:
    """An answer: how many items, then the items counted down, each of as many words as chance will have.

    Which words an item gets depends on its number, so that a model must know at every word how far it is, as
    models of real language do.

    Examples
    --------
    >>> words = answer(Meaning("name", "one", "birds", "briefly"), np.random.default_rng(0))
    >>> words[:3], words[-1]
    (['#1', ':', '#1'], 'done')
    """
    least, most = AMOUNTS[meaning.amount]
    items = int(rng.integers(least, most + 1))
    mean = WORDS_PER_ITEM * VERBS[meaning.verb] * STYLES[meaning.style]
    mean *= math.exp(rng.normal(0.0, 0.2))
    words = [f"#{items}", ":"]
    for k in range(items, 0, -1):
        count = min(MOST_WORDS, 1 + int(rng.poisson(mean)))
        chosen = k - 1 + rng.integers(0, CHOICE, count)
        words += [f"#{k}", *(TOPICS[meaning.topic][i] for i in chosen), "."]
    return [*words, "done"]


def train(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = 1000,
    hidden: int = 96,
    layers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train the model and save it.

    Parameters
    ----------
    out
        Folder to write: ``config.json``, ``model.safetensors``, tokenizer.
    seed
        Of weights and texts.
    steps
        Batches of 32 texts.
    hidden, layers
        Size; `hidden` a multiple of 32, the size of a head.
    progress
        Called with (steps done, all steps).

    Returns
    -------
    list of float
        Cross-entropy per answer token in nats, mean over each 50 steps.

    Raises
    ------
    MissingExtraError
        If torch or transformers is not installed.
    """
    require(hidden > 0 and hidden % 32 == 0, "hidden", "a positive multiple of 32", hidden)
    require(layers >= 1, "layers", "at least 1", layers)
    require(steps >= 1, "steps", "at least 1", steps)
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "predict") from error
    words = vocabulary()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32, rms_norm_eps=1e-5,
        max_position_embeddings=LENGTH_TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    batches = _batches(rng, {word: i for i, word in enumerate(words)})
    losses: list[float] = []
    curve: list[float] = []
    for step in range(steps):
        tokens, labels = (torch.from_numpy(a) for a in next(batches))
        mask = (torch.arange(tokens.shape[1]) < (labels != -1).sum(1, keepdim=True)).long()
        labels = labels.masked_fill(labels < 0, -100)
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if len(losses) == 50 or step + 1 == steps:
            curve.append(float(np.mean(losses)))
            losses = []
        if progress is not None:
            progress(step + 1, steps)
    target = Path(out)
    model.to(torch.bfloat16).save_pretrained(target)
    _save_tokenizer(target, words)
    return curve


def _batches(rng: np.random.Generator, number: dict[str, int], size: int = 32, pool: int = 64):  # type: ignore[no-untyped-def]
    """Endless (tokens, labels), shape (size, length), texts of like length together.

    Labels are -100 on the prompt, which is nothing to learn, and -1 on padding.
    """
    while True:
        texts = []
        for _ in range(size * pool):
            prompt, meaning = _prompt(rng)
            asked = [1, *(number[w] for w in prompt)]
            texts.append((asked, [*(number[w] for w in answer(meaning, rng)), 2]))
        texts.sort(key=lambda text: len(text[0]) + len(text[1]))
        for b in rng.permutation(pool):
            chosen = texts[b * size : (b + 1) * size]
            length = max(len(p) + len(a) for p, a in chosen)
            tokens = np.zeros((size, length), dtype=np.int64)
            labels = np.full((size, length), -1, dtype=np.int64)
            for i, (p, a) in enumerate(chosen):
                tokens[i, : len(p) + len(a)] = [*p, *a]
                labels[i, : len(p)] = -100
                labels[i, len(p) : len(p) + len(a)] = a
            yield tokens, labels


def _save_tokenizer(target: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a space between words
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": LENGTH_TOKENS,
        "chat_template": "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
        "{% endfor %}",
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args(arguments)
    begin = time.perf_counter()

    def report(done: int, total: int) -> None:
        if done % 100 == 0:
            print(f"step {done} of {total}, {time.perf_counter() - begin:.0f} s", flush=True)

    curve = train(options.out, seed=options.seed, steps=options.steps, progress=report)
    print("cross-entropy per answer token: " + " ".join(f"{loss:.3f}" for loss in curve))


if __name__ == "__main__":
    main()
