"""Forecasts of newcomers: the client's hint, else a ranker's, else the class's history."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

import numpy as np

from slosched.core.forecast import LengthForecast
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.slo_fields import Claim
from slosched.integrations.vllm.metrics import Stats
from slosched.predictors.base import Predictor, Prompt
from slosched.predictors.registry import load_predictor
from slosched.predictors.calibration import Recalibration
from slosched.predictors.history import ClassHistory
from slosched.core.table import Floats

logger = logging.getLogger("vllm.slosched")

MOST_TOKENS = 2048
"""Prompt tokens that are turned back into text for a ranker: half from each end of a longer prompt."""

PATIENCE = 8
"""Failures or slow answers in a row after which a ranker is left alone."""

HINT_SIGMA = 0.4
"""Spread of a client's hint that comes without a quantile."""


class Forecaster:
    """Where forecasts come from, and what finished answers teach it.

    A ranker that raises or takes longer than allowed costs that request nothing but its forecast: it keeps
    its class's. Both are counted as failures, ``ranker`` and ``slow_ranker``. What the ranker took, tokens to
    text included, is in ``stats.forecast_s``.
    """

    def __init__(self, config: Config, history: ClassHistory, stats: Stats) -> None:
        self._history, self._stats, self._settings = history, stats, config.forecast
        folder = config.forecast.ranker
        self._ranker: Predictor | None = None if folder is None else load_predictor(folder)
        self._model: Any = None
        self._tokenizer: Any = None
        self._recalibration: dict[str, Recalibration] = {}
        self._asked: dict[str, Floats] = {}
        self._bad = 0

    def reads(self, scheduler: Any) -> None:
        """Take the tokenizer of the model this scheduler serves; forecast once, so that whatever is loaded or
        compiled then is not waited for while serving.
        """
        self._model = getattr(getattr(scheduler, "vllm_config", None), "model_config", None)
        if self._ranker is None or self._model is None:
            return
        try:
            self._ranker.forecast([Prompt(self._decoded([0]))])
        except Exception as error:
            self._failed("ranker", error)

    def of(self, claim: Claim, request: Any) -> LengthForecast:
        """The forecast of a request, never beyond its ``max_tokens``."""
        limit = float(max(1, request.max_tokens))
        forecast = self._hint(claim) or self._ranked(claim, request)
        if forecast is None:
            forecast = self._history.of(claim.slo_class, request.num_prompt_tokens)
        if forecast.atoms[-1] > limit:
            forecast = LengthForecast(tuple(min(a, limit) for a in forecast.atoms))
        return forecast

    def learn(self, request_id: str, slo_class: str, tokens: int, *, prompt_tokens: int, cut: bool) -> None:
        """Learn from an answer that has ended, or was cut off."""
        asked = self._asked.pop(request_id, None)
        if tokens < 1:
            return
        self._history.observe(slo_class, tokens, prompt_tokens=prompt_tokens, cut=cut)
        if asked is not None:
            self._recalibration.setdefault(slo_class, Recalibration()).observe(asked, tokens, cut=cut)

    def _hint(self, claim: Claim) -> LengthForecast | None:
        tokens, p90 = claim.predicted_tokens, claim.predicted_p90_tokens
        if tokens is None or not self._settings.client_hint:
            return None
        if p90 is not None and p90 > tokens:
            return LengthForecast.quantiles({0.5: tokens, 0.9: p90})
        return LengthForecast.lognormal(tokens, HINT_SIGMA)

    def _ranked(self, claim: Claim, request: Any) -> LengthForecast | None:
        if self._ranker is None or self._bad >= PATIENCE:
            return None
        begun = perf_counter()
        try:
            prompt = Prompt(self._text(request), max(1, request.num_prompt_tokens), claim.slo_class)
            atoms = self._ranker.forecast([prompt])
            fix = self._recalibration.get(claim.slo_class)
            told = atoms if fix is None else fix.adjust(atoms)
            forecast = LengthForecast(tuple(float(a) for a in told[0]))
        except Exception as error:
            self._failed("ranker", error)
            return None
        seconds = perf_counter() - begun
        stats = self._stats
        first = "ranker" not in stats.forecasts
        stats.forecasts["ranker"] = stats.forecasts.get("ranker", 0) + 1
        stats.forecast_s["ranker"] = stats.forecast_s.get("ranker", 0.0) + seconds
        if 1e3 * seconds > self._settings.limit_ms and not first:  # the first may still compile and load
            self._failed("slow_ranker", TimeoutError(f"{1e3 * seconds:.1f} ms"))
            return None
        self._bad = 0
        self._asked[request.request_id] = atoms[0]
        return forecast

    def _failed(self, reason: str, error: Exception) -> None:
        self._bad += 1
        self._stats.failure(reason, error)
        if self._bad == PATIENCE:
            logger.warning("slosched: the ranker failed %d times in a row and is left alone", PATIENCE)

    def _text(self, request: Any) -> str:
        text = getattr(request, "prompt", None)
        if isinstance(text, str) and text:
            return text
        ids = list(request.prompt_token_ids or ())
        if len(ids) > MOST_TOKENS:
            ids = ids[: MOST_TOKENS // 2] + ids[-(MOST_TOKENS // 2) :]
        return self._decoded(ids)

    def _decoded(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            name = getattr(self._model, "tokenizer", None) or self._model.model
            self._tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def running_of(ledger: Any) -> list[tuple[str, int, int]]:
    """Class, prompt tokens and tokens generated of every request of a ledger that is being answered."""
    t = ledger.table
    rows = np.array(sorted(ledger.rows.values()), dtype=np.int64)
    rows = rows[t.generated_tokens[rows] > 0]
    return [
        (t.classes[t.class_index[row]], int(t.prompt_tokens[row]), int(t.generated_tokens[row]))
        for row in rows.tolist()
    ]
