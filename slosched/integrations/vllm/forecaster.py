"""Forecasts of newcomers: class history, ranker, the program's past turns and the client's hint, blended by
how right each has been.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.forecast import LengthForecast
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.slo_fields import Claim
from slosched.integrations.vllm.state import Learned
from slosched.predictors import Predictor, Prompt, load_predictor
from slosched.predictors.base import digest_of
from slosched.predictors.blend import HISTORY, Told
from slosched.predictors.history import PastTurns, renewal_due
from slosched.predictors.later import Later
from slosched.predictors.prior import FOLDER, PRIOR

logger = logging.getLogger("vllm.slosched")

MOST_TOKENS = 2048
"""Prompt tokens that are turned back into text for a ranker: half from each end of a longer prompt."""

PATIENCE = 8
"""Failures or slow answers in a row after which a ranker is left alone."""

HINT_SIGMA = 0.4
"""Spread of a client's hint that comes without a quantile."""

REVISED_A_STEP = 16
"""Forecasts made anew in one step of the engine, some 40 us each, 2 us where only the history tells."""


@dataclass(slots=True)
class _Asked:
    """What was told of a request, and what bounds and places its forecast."""

    told: Told | None
    slo_class: str
    limit: float
    prompt_tokens: int
    program: int
    probed: bool = False


class Forecaster:
    """Where forecasts come from, and what finished answers teach it.

    A ranker that raises or takes longer than allowed costs that request nothing but its forecast: it keeps
    its class's. Both are counted as failures, ``ranker`` and ``slow_ranker``. A ranker with a quick one
    inside, such as one with an encoder, is asked on a thread of its own: the quick one's forecast holds until
    its word is there. What forecasts took on the engine's thread, tokens to text included, is in
    ``stats.forecast_s``.
    """

    def __init__(self, config: Config, learned: Learned, stats: Stats) -> None:
        self._history, self._blend = learned.lengths, learned.blend
        self._stats, self._settings = stats, config.forecast
        self._ranker, self._name = _load(config)
        quick = getattr(self._ranker, "quick", None)
        self._later: Later | None = None
        if self._ranker is not None and quick is not None:
            self._later = Later(self._ranker)
            self._ranker, self._name = quick, "light"
        if config.forecast.ranker is not None:
            named = config.forecast.ranker
            digest = digest_of(FOLDER if str(named) == PRIOR else named)
            learned.sources = dict.fromkeys(
                ("ranker", "light") if quick is not None else (self._name,), digest
            )
        self._model: Any = None
        self._tokenizer: Any = None
        if config.forecast.trust > 0:
            self._blend.trusted |= dict.fromkeys((self._name, "ranker"), config.forecast.trust)
        self._turns = PastTurns()
        self._asked: dict[str, _Asked] = {}
        self._revise: deque[str] = deque()
        self._bad = self._bad_later = self._learned = 0

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
        tokens = max(1, request.num_prompt_tokens)
        history = self._history.of(claim.slo_class, tokens)
        if self._ranker is None and claim.predicted_tokens is None and claim.program < 0:
            self._asked[request.request_id] = _Asked(None, claim.slo_class, limit, tokens, -1)
            return history if history.atoms[-1] <= limit else _at_most(history.atoms, limit)
        sources = {HISTORY: np.asarray(history.atoms)}
        said = {
            "hint": self._hint(claim), self._name: self._ranked(claim, request),
            "program": self._turns.of(claim.program),
        }  # fmt: skip
        sources |= {name: atoms for name, atoms in said.items() if atoms is not None}
        told, atoms = None, sources[HISTORY]
        if len(sources) > 1:
            told = self._blend.tell(claim.slo_class, sources)
            atoms = self._blend.atoms(told)
        self._asked[request.request_id] = _Asked(told, claim.slo_class, limit, tokens, claim.program)
        return _at_most(atoms.tolist(), limit)

    def news(self) -> Iterator[tuple[str, Floats]]:
        """Better forecasts than those given: a slow ranker's, and after some answers everybody's; a few at a
        time. None of requests of which a probe has told.
        """
        if self._later is not None:
            for name, said in self._later.words():
                asked = self._asked.get(name)
                said = _believable(said)
                if isinstance(said, Exception):
                    self._failed_later(said)
                elif asked is not None and asked.told is not None:
                    self._bad_later = 0
                    self._count("ranker", 0.0)
                    sources = {n: np.exp(r) for n, r in zip(asked.told.names, asked.told.logs, strict=True)}
                    kept = {n: atoms for n, atoms in sources.items() if n in (HISTORY, "hint", "program")}
                    asked.told = self._blend.tell(asked.told.slo_class, kept | {"ranker": said})
                    if not asked.probed:
                        yield name, np.minimum(self._blend.atoms(asked.told), asked.limit)
        for _ in range(min(REVISED_A_STEP, len(self._revise))):
            name = self._revise.popleft()
            asked = self._asked.get(name)
            if asked is not None and not asked.probed:
                asked.told, atoms = self._again(asked)
                yield name, atoms

    def newest(self, request_id: str) -> Floats | None:
        """What a request would be forecast now; None if it is not known, or a probe has told more."""
        asked = self._asked.get(request_id)
        return None if asked is None or asked.probed else self._again(asked)[1]

    def probed(self, request_ids: Iterable[str]) -> None:
        """A probe has told of these requests: it knows more than what is blended here."""
        for name in request_ids:
            asked = self._asked.get(name)
            if asked is not None:
                asked.probed = True

    def learn(self, request_id: str, slo_class: str, tokens: int, *, prompt_tokens: int, cut: bool) -> None:
        """Learn from an answer that has ended, or was cut off."""
        asked = self._asked.pop(request_id, None)
        if self._later is not None:
            self._later.forget(request_id)
        if tokens < 1:
            return
        self._history.observe(slo_class, tokens, prompt_tokens=prompt_tokens, cut=cut)
        self._learned += 1
        if renewal_due(self._learned):
            self._revise = deque(self._asked)
        if asked is None:
            return
        if asked.program >= 0:
            self._turns.observe(asked.program, tokens)
        if asked.told is None:
            return
        self._blend.observe(asked.told, tokens, cut=cut)

    def weights(self, slo_class: str) -> dict[str, float]:
        """How far each source is followed in a class; sums to 1."""
        return self._blend.weights(slo_class)

    def _again(self, asked: _Asked) -> tuple[Told | None, Floats]:
        """What sources say with what has been learned since, and the forecast made of it."""
        atoms = np.asarray(self._history.of(asked.slo_class, asked.prompt_tokens).atoms)
        told = asked.told
        if told is not None:
            told = self._blend.again(told, atoms)
            atoms = self._blend.atoms(told)
        return told, np.minimum(atoms, asked.limit)

    def _hint(self, claim: Claim) -> Floats | None:
        tokens, p90 = claim.predicted_tokens, claim.predicted_p90_tokens
        if tokens is None or not self._settings.client_hint:
            return None
        if p90 is not None and p90 > tokens:
            return np.asarray(LengthForecast.quantiles({0.5: tokens, 0.9: p90}).atoms)
        return np.asarray(LengthForecast.lognormal(tokens, HINT_SIGMA).atoms)

    def _ranked(self, claim: Claim, request: Any) -> Floats | None:
        if self._ranker is None or self._bad >= PATIENCE:
            return None
        begun = perf_counter()
        try:
            prompt = Prompt(self._text(request), max(1, request.num_prompt_tokens), claim.slo_class)
            atoms = np.asarray(LengthForecast(tuple(self._ranker.forecast([prompt])[0].tolist())).atoms)
        except Exception as error:
            self._failed("ranker", error)
            return None
        seconds = perf_counter() - begun
        first = self._name not in self._stats.forecasts
        self._count(self._name, seconds)
        if 1e3 * seconds > self._settings.limit_ms and not first:  # the first may still compile and load
            self._failed("slow_ranker", TimeoutError(f"{1e3 * seconds:.1f} ms"))
            return None
        self._bad = 0
        if self._later is not None:
            self._later.ask(request.request_id, prompt)
        return atoms

    def _count(self, name: str, seconds: float) -> None:
        stats = self._stats
        stats.forecasts[name] = stats.forecasts.get(name, 0) + 1
        stats.forecast_s[name] = stats.forecast_s.get(name, 0.0) + seconds

    def _failed(self, reason: str, error: Exception) -> None:
        self._bad += 1
        self._stats.failure(reason, error)
        if self._bad == PATIENCE:
            logger.warning("slosched: the ranker failed %d times in a row and is left alone", PATIENCE)

    def _failed_later(self, error: Exception) -> None:
        """A slow ranker that fails is left alone as well; its quick one goes on."""
        self._bad_later += 1
        self._stats.failure("ranker", error)
        if self._bad_later == PATIENCE and self._later is not None:
            self._later.close()
            self._later = None
            logger.warning("slosched: the slow ranker failed %d times in a row and is left alone", PATIENCE)

    def _text(self, request: Any) -> str:
        text = getattr(request, "prompt", None)
        if isinstance(text, str) and text:
            return text
        ids = list(request.prompt_token_ids or ())
        if len(ids) > MOST_TOKENS:
            ids = ids[: MOST_TOKENS // 2] + ids[-(MOST_TOKENS // 2) :]
        return self._decoded(ids)

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer().decode(ids, skip_special_tokens=True))

    def tokenizer(self) -> Any:
        """The tokenizer of the model that is served, loaded at its first use."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            name = getattr(self._model, "tokenizer", None) or self._model.model
            self._tokenizer = AutoTokenizer.from_pretrained(
                name,
                local_files_only=True,
                # As the server was told: unsaid, the library would ask at the terminal.
                trust_remote_code=bool(getattr(self._model, "trust_remote_code", False)),
            )
        return self._tokenizer


def _believable(said: Floats | Exception) -> Floats | Exception:
    """What a slow ranker said as a forecast, or why it is none."""
    if isinstance(said, Exception):
        return said
    try:
        return np.asarray(LengthForecast(tuple(said.tolist())).atoms)
    except Exception as error:
        return error


def _at_most(atoms: Iterable[float], limit: float) -> LengthForecast:
    """A forecast of these lengths, none beyond the limit."""
    return LengthForecast(tuple([min(atom, limit) for atom in atoms]))


def _load(config: Config) -> tuple[Predictor | None, str]:
    """The ranker that the configuration names, and the name of the source."""
    named = config.forecast.ranker
    if named is None:
        return None, "ranker"
    return load_predictor(named), PRIOR if str(named) == PRIOR else "ranker"


def running_of(ledger: Any) -> list[tuple[str, int, int]]:
    """Class, prompt tokens and tokens generated of every request of a ledger that is being answered."""
    t = ledger.table
    rows = np.array(sorted(ledger.rows.values()), dtype=np.int64)
    rows = rows[t.generated_tokens[rows] > 0]
    return [
        (t.classes[t.class_index[row]], int(t.prompt_tokens[row]), int(t.generated_tokens[row]))
        for row in rows.tolist()
    ]
