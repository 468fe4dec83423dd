"""Scenarios: an engine, its traffic and what was promised, each rerun to the digit from a small file.

`slosched.lab.population` draws them at random; here is what one is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, preset
from slosched.core.errors import InputError, require
from slosched.core.workload import Workload
from slosched.core.writing import write_file
from slosched.lab.configfile import config_words, parse_config
from slosched.lab.offered_load import Demand, demand
from slosched.workloads.arrivals import shaped_arrivals
from slosched.workloads.families import FAMILIES, Sessions, draw_family
from slosched.workloads.mix import merge
from slosched.workloads.noise import with_forecast
from slosched.workloads.prefix import shared_prefix
from slosched.workloads.slos import unloaded_latency

LEAST_LIMIT_S = 0.2
"""No TTFT or e2e limit is below: a multiple of the unloaded latency of ten tokens is no promise anybody
makes. The tightest published ones are 0.125 to 0.25 s (DistServe, OSDI 2024, table 1)."""
CLASS_QUANTILE = 0.9
"""A limit for a whole class is a multiple of what its request at this quantile takes alone."""
BLOCK_TOKENS = 64
"""Grain of shared prefixes."""
STEADY = ((0.0, 1.0), (1.0, 1.0))
"""Profile of a rate that stays."""

Range = tuple[float, float]


class Traffic(BaseModel):
    """One class of requests.

    Parameters
    ----------
    name
        Label of the class.
    family
        One of `slosched.workloads.families.FAMILIES`.
    share
        Share of the requests, above 0; shares are divided by their sum.
    answer_scale
        Factor of the family's answer lengths.
    cv, profile
        Arrivals, see `slosched.workloads.shaped_arrivals`. Sessions begin by them; their later turns follow.
    ttft_x, tpot_x, e2e_x
        Limits as multiples: of the unloaded TTFT and e2e latency, and of a decode step that serves nobody
        else. Two numbers: each request draws its own, log-uniform between them. None for no limit.
    per_request
        Whether TTFT and e2e limits are multiples of the request's own unloaded latency. Otherwise the whole
        class has the limit of its 90th percentile.
    weight
        Weight of its requests, above 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    family: str
    share: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    answer_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    cv: float = Field(default=1.0, gt=0, le=100)
    profile: tuple[Range, ...] = STEADY
    ttft_x: Range | None = None
    tpot_x: Range | None = None
    e2e_x: Range | None = None
    per_request: bool = False
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _domains(self) -> Self:
        require(self.family in FAMILIES, "family", "one of " + ", ".join(FAMILIES), self.family)
        for name in ("ttft_x", "tpot_x", "e2e_x"):
            value = getattr(self, name)
            ok = value is None or 0 < value[0] <= value[1] < np.inf
            require(ok, name, "two ascending finite multiples above 0, or null", value)
        shaped_arrivals(1, 1.0, profile=self.profile, rng=np.random.default_rng(0))
        return self


class Scenario(BaseModel):
    """An engine, its traffic, its limits and its load; field names are the keys of a config file.

    Parameters
    ----------
    name
        For reports.
    seed
        Seed of all random streams.
    preset, max_num_seqs, max_num_batched_tokens, kv_tokens
        The engine.
    classes
        Its traffic; names are distinct.
    load
        Offered work over what the engine can sustain, above 0; see `slosched.lab.offered_load`.
    requests
        How many, at least 10. Their work and the load give the length of the window.
    forecast
        What is known of output lengths, see `slosched.workloads.with_forecast`.
    tenants, greedy_share
        Tenants with equal shares of the requests; if `greedy_share` is above 0, the first sends that share.
    heavy_share, heavy_weight
        A random share of all requests has its weight times `heavy_weight`.
    burst
        A short burst from an empty engine: no warm-up and no drain are cut from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "scenario"
    seed: int = Field(default=0, ge=0)
    preset: str = "h100-llama-3.1-8b"
    max_num_seqs: int = Field(default=256, ge=1)
    max_num_batched_tokens: int = Field(default=2048, ge=1)
    kv_tokens: int = Field(default=432_000, ge=64)
    classes: tuple[Traffic, ...] = Field(min_length=1)
    load: float = Field(default=1.0, gt=0, le=100)
    requests: int = Field(default=1000, ge=10)
    forecast: str = "predictor-5"
    tenants: int = Field(default=1, ge=1)
    greedy_share: float = Field(default=0.0, ge=0, lt=1)
    heavy_share: float = Field(default=0.0, ge=0, lt=1)
    heavy_weight: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    burst: bool = False

    @model_validator(mode="after")
    def _domains(self) -> Self:
        preset(self.preset)
        names = [traffic.name for traffic in self.classes]
        require(len(dict.fromkeys(names)) == len(names), "classes", "of distinct names", ", ".join(names))
        with_forecast(Workload.plain(np.zeros(1), np.ones(1, np.int64), np.ones(1, np.int64)), self.forecast)
        return self

    @property
    def engine(self) -> Engine:
        """The engine; it has a prefix cache if some class shares prefixes."""
        engine = preset(self.preset).with_limits(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_tokens=self.kv_tokens,
        )
        shares = any(traffic.family in ("agents", "multi-turn") for traffic in self.classes)
        return replace(engine, limits=replace(engine.limits, prefix_cache=shares))

    def workload(self) -> Workload:
        """The requests: lengths, arrivals, limits, weights, tenants and forecasts."""
        return self.traffic().workload

    def traffic(self) -> Realised:
        """The requests together with the window in which they come."""
        engine = self.engine
        drawn = self._lengths(engine)
        asked = _demand(drawn, engine)
        window_s = self.requests * asked.seconds / self.load
        streams = _stream(self.seed, 1).spawn(len(drawn))
        parts = [
            _timed(traffic, lengths, window_s, engine, stream)
            for traffic, lengths, stream in zip(self.classes, drawn, streams, strict=True)
            if len(lengths)
        ]
        together = merge(parts, name=self.name)
        weighted = self._weights(together, _stream(self.seed, 2))
        told = with_forecast(weighted, self.forecast, seed=int(_stream(self.seed, 3).integers(2**31)))
        return Realised(workload=told, window_s=window_s, demand=asked)

    def save(self, path: str | Path) -> None:
        """Write the scenario as YAML, from which it reruns to the digit."""
        write_file(Path(path), self.to_yaml().encode())

    def to_yaml(self) -> str:
        """The scenario as the text of a config file."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text

    @classmethod
    def load_file(cls, path: str | Path) -> Self:
        """Read a scenario from a YAML, TOML or JSON file.

        Raises
        ------
        InputError
            If the file is malformed, a key is unknown or a value is out of its domain.
        """
        try:
            return cls.model_validate(parse_config(Path(path)))
        except OSError as error:
            raise InputError(f"scenario must be a readable file, got {str(path)!r}: {error}.") from None
        except ValidationError as error:
            raise InputError(config_words(error, str(path), cls)) from None

    def _lengths(self, engine: Engine) -> list[Sessions]:
        """Lengths of each class: shares of the requests, the last class takes what is left."""
        total = sum(traffic.share for traffic in self.classes)
        counts = [round(self.requests * traffic.share / total) for traffic in self.classes[:-1]]
        counts.append(max(0, self.requests - sum(counts)))
        # No request may fill the cache alone.
        longest = min(engine.limits.max_model_len, engine.limits.kv_tokens // 2)
        streams = _stream(self.seed, 0).spawn(len(counts))
        return [
            draw_family(t.family, n, longest_tokens=longest, answer_scale=t.answer_scale, rng=rng)
            for t, n, rng in zip(self.classes, counts, streams, strict=True)
        ]

    def _weights(self, work: Workload, rng: np.random.Generator) -> Workload:
        """The workload with weights, tenants, and vLLM's priorities: heavier first, then tighter classes."""
        n = len(work)
        weight = work.weight * np.where(rng.random(n) < self.heavy_share, self.heavy_weight, 1.0)
        shares = np.full(self.tenants, 1.0 / self.tenants)
        if self.greedy_share > 0 and self.tenants > 1:
            shares = np.full(self.tenants, (1 - self.greedy_share) / (self.tenants - 1))
            shares[0] = self.greedy_share
        tenant = np.minimum(np.searchsorted(np.cumsum(shares), rng.random(n)), self.tenants - 1)
        limit = np.minimum(work.ttft_s, work.e2e_s)
        tight = np.array([np.median(limit[work.class_index == c]) for c in range(len(work.classes))])
        _, rank = np.unique(np.stack([-weight, tight[work.class_index]]), axis=1, return_inverse=True)
        return replace(
            work,
            weight=weight,
            tenant_index=tenant.astype(np.int64),
            tenants=tuple(f"tenant-{i}" for i in range(self.tenants)),
            priority=rank.reshape(-1).astype(np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """A scenario's requests, the window in which they come, and what they ask of the engine."""

    workload: Workload
    window_s: float
    demand: Demand


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """Independent random streams for lengths, arrivals, weights and forecasts."""
    return np.random.default_rng((seed, purpose))


def _demand(drawn: list[Sessions], engine: Engine) -> Demand:
    prompt, output, reused = (
        np.concatenate([getattr(lengths, name) for lengths in drawn])
        for name in ("prompt_tokens", "output_tokens", "reused_tokens")
    )
    return demand(prompt, output, reused, engine)


def _timed(
    traffic: Traffic, drawn: Sessions, window_s: float, engine: Engine, rng: np.random.Generator
) -> Workload:
    """One class with arrivals and limits, in order of arrival.

    Sessions are closed loops: a turn is sent its pause after the answer before. It is planned as if answers
    took what they take on an idle engine. Turns planned past the end of the window are those that a session
    begun earlier would send: they come at its beginning, as a session of their own.
    """
    plain = Workload.plain(np.zeros(len(drawn)), drawn.prompt_tokens, drawn.output_tokens)
    alone = unloaded_latency(plain, engine.step_time, chunk_tokens=engine.limits.max_num_batched_tokens)
    first = drawn.turn == 0
    starts = shaped_arrivals(int(first.sum()), window_s, profile=traffic.profile, cv=traffic.cv, rng=rng)
    wait = np.where(first, 0.0, drawn.pause_s + np.concatenate([[0.0], alone.e2e_s[:-1]]))
    passed = np.cumsum(wait)
    began = np.flatnonzero(first)
    clock = starts[np.cumsum(first) - 1] + passed - passed[began][np.cumsum(first) - 1]
    lap, clock = np.divmod(clock, window_s)
    order = np.lexsort((drawn.turn, drawn.session, clock))
    prefix = session = None
    if drawn.shared:
        laps = int(lap.max(initial=0)) + 1
        session = (drawn.session * laps + lap.astype(np.int64))[order]
        prefix = shared_prefix(
            session,
            drawn.prompt_tokens[order],
            drawn.reused_tokens[order],
            BLOCK_TOKENS,
            common_tokens=drawn.common_tokens,
        )
    work = Workload.plain(
        clock[order],
        drawn.prompt_tokens[order],
        drawn.output_tokens[order],
        name=traffic.name,
        slo_class=traffic.name,
        session=session,
        think_s=drawn.pause_s[order] if drawn.shared else None,
        prefix=prefix,
        source=f"generated; {drawn.source}",
    )
    n = len(work)
    context = float((drawn.prompt_tokens + drawn.output_tokens / 2).mean())
    bare_s = float(engine.step_time.predict(sequences=1, kv_tokens=context))
    return replace(
        work,
        ttft_s=np.maximum(
            LEAST_LIMIT_S, _base(traffic, alone.ttft_s[order]) * _factor(traffic.ttft_x, n, rng)
        ),
        tpot_s=bare_s * _factor(traffic.tpot_x, n, rng),
        e2e_s=np.maximum(LEAST_LIMIT_S, _base(traffic, alone.e2e_s[order]) * _factor(traffic.e2e_x, n, rng)),
        weight=np.full(n, traffic.weight),
    )


def _base(traffic: Traffic, alone_s: Floats) -> Floats:
    """What a multiple multiplies: the own unloaded latency, or that of the class's 90th percentile."""
    if traffic.per_request:
        return alone_s
    return np.full(len(alone_s), np.quantile(alone_s, CLASS_QUANTILE))


def _factor(between: Range | None, n: int, rng: np.random.Generator) -> Floats:
    """Log-uniform multiples, shape (n,); infinity for no limit."""
    drawn = rng.random(n)
    if between is None:
        return np.full(n, np.inf)
    low, high = np.log(between)
    return np.asarray(np.exp(low + drawn * (high - low)))


def limits_of(work: Workload) -> Ints:
    """Rows that have a TTFT or e2e limit."""
    return np.flatnonzero(np.isfinite(work.ttft_s) | np.isfinite(work.e2e_s))
