"""The transformer ranker of Fu et al. 2024 (arXiv 2408.15792, section 3), and its classification baseline.

Any Hugging Face encoder or decoder reads the prompt. A linear layer without bias turns the state of its last
token, or the mean over its tokens, into a score (ListMLE) or chances of length classes. Needs torch and
transformers. `transformer_training` trains it; `encoder_ranker` trains with that and serves without either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, require
from slosched.core.writing import write_files
from slosched.predictors.base import ABOUT, Prompt, about_of
from slosched.predictors.calibration import Calibration
from slosched.predictors.encoder import BYTES_PER_TOKEN, both_ends, readable
from slosched.predictors.pretrained import import_torch, open_model
from slosched.predictors.states import read_tensors, write_tensors

OBJECTIVES = ("listmle", "classes-10", "classes-100", "classes-820")
"""``listmle`` as in the paper, or the baseline with classes that many tokens wide, read as expected length
(the paper takes the likeliest class)."""

MOST_TOKENS = 2048
"""Longer prompts are cut here, as in the paper, or where the model's positions end."""

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
        assert self.calibration is not None, "calibrated by training and load"
        return self.calibration.atoms(self.score([prompt.text for prompt in prompts]))

    def save(self, folder: str | Path) -> Path:
        """Write the model, its tokenizer, the head and ``predictor.json``; returns the folder."""
        assert self.calibration is not None, "calibrated by training and load"
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


def _quick(wanted: bool) -> Any:
    """Computing in 16 bits on a processor with instructions for them: half the time (docs/predictors.md)."""
    import torch

    able = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = wanted and any(getattr(torch.cpu, name, bool)() for name in able)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=known)
