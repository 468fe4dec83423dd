"""What a request says of itself, read leniently from ``vllm_xargs`` or ``SamplingParams.extra_args``; and
the names of tenants, bounded in number.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from slosched.core.request import Slo
from slosched.core.table import RequestTable
from slosched.integrations.vllm.config import BEST_EFFORT, MAX_MS, ClassConfig, Config, is_name

MAX_TOKENS = 1e7

LIMIT_FIELDS = {"slo_ttft_ms": "ttft", "slo_tpot_ms": "tpot", "slo_e2e_ms": "e2e", "slo_ttfat_ms": "ttfat"}
LENGTH_FIELDS = ("predicted_output_tokens", "predicted_output_tokens_p90", "predicted_thinking_tokens")
ALIASES = {"pred_len": "predicted_output_tokens", "pred_len_p90": "predicted_output_tokens_p90"}
FIELDS = (*LIMIT_FIELDS, "slo_class", "slo_weight", "slo_tenant", "slo_program", *LENGTH_FIELDS)
"""Every field a request may carry."""

OTHER_TENANTS = "other"
"""Whom a name counts as while too many others have requests in the engine."""

FORGOTTEN_S = 600.0
"""Seconds after a tenant's last request until its name may be forgotten though there is room: as long as a
fair policy's memory of its service should last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one request says about itself, made harmless.

    `program` is the number of its program, -1 for none; `malformed` names the fields that were ignored for
    their value.
    """

    slo: Slo
    slo_class: str
    weight: float
    tenant: str = "default"
    program: int = -1
    predicted_tokens: float | None = None
    predicted_p90_tokens: float | None = None
    predicted_thinking_tokens: float | None = None
    malformed: tuple[str, ...] = ()


def read_claim(extra: object, config: Config) -> Claim:
    """Read the SLO fields of a request; never raises, whatever they hold.

    A field that is not what it should be is ignored in favour of what its class says and is named in
    `Claim.malformed`; an unknown class counts as the default class. Limits below the tightest and weights
    above the greatest that the request's tenant may claim count as these. A limit on the first answer token
    counts only where the configuration names the mark that ends thinking.

    Examples
    --------
    >>> claim = read_claim({"slo_ttft_ms": 500, "slo_tpot_ms": "fast", "slo_weight": 1e9}, Config())
    >>> claim.slo.ttft_s, claim.slo.tpot_s, claim.weight, claim.malformed
    (0.5, None, 1.0, ('slo_tpot_ms',))
    """
    fields: Mapping[Any, Any] = extra if isinstance(extra, Mapping) else {}
    malformed: list[str] = []
    values = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    for alias, name in ALIASES.items():
        if fields.get(alias) is not None:
            values.setdefault(name, fields[alias])

    def number(name: str, least: float, most: float) -> float | None:
        """The field's number within its domain; None, and named as malformed if given, otherwise."""
        value = _number(values.get(name))
        if value is not None and not least <= value <= most:
            value = None
        if value is None and name in values:
            malformed.append(name)
        return value

    def label(name: str) -> str | None:
        """The field's text; None, and named as malformed if given, otherwise."""
        value = values.get(name)
        if is_name(value):
            return value
        if name in values:
            malformed.append(name)
        return None

    def length(name: str) -> float | None:
        """The field's number of tokens, if it is given."""
        return number(name, 1.0, MAX_TOKENS) if name in values else None

    slo_class = (label("slo_class") if "slo_class" in values else None) or config.default_class
    if slo_class not in config.classes and slo_class != config.default_class:
        malformed.append("slo_class")
        slo_class = config.default_class
    promised = class_of(config, slo_class)
    tenant = (label("slo_tenant") if "slo_tenant" in values else None) or "default"
    program = label("slo_program") if "slo_program" in values else None
    limits: dict[str, float | None] = {}
    for name, kind in LIMIT_FIELDS.items():
        value = number(name, math.ulp(0.0), MAX_MS) if name in values else None
        if value is not None and kind == "ttfat" and config.thinking is None:
            malformed.append(name)
            value = None
        if value is not None:
            value = _limit_ms(config, promised, tenant, kind, value)
        else:
            value = getattr(promised, kind + "_ms")
        limits[kind + "_s"] = None if value is None else value / 1000.0
    weight = number("slo_weight", 0.0, math.inf) if "slo_weight" in values else None
    tokens, p90, thinking = map(length, LENGTH_FIELDS)
    return Claim(
        slo=Slo(**limits),
        slo_class=slo_class,
        weight=promised.weight if weight is None else _weight(config, promised, tenant, weight),
        tenant=tenant,
        program=-1 if program is None else program_number(tenant, program),
        predicted_tokens=tokens if tokens is not None else promised.predicted_output_tokens,
        predicted_p90_tokens=p90,
        predicted_thinking_tokens=thinking,
        malformed=tuple(malformed),
    )


def class_of(config: Config, name: str) -> ClassConfig:
    """The settings of a class; best effort for a default class that is not listed."""
    return config.classes.get(name) or BEST_EFFORT


def _weight(config: Config, promised: ClassConfig, tenant: str, claimed: float) -> float:
    """What a claimed weight counts as."""
    rights = config.tenants.get(tenant)
    most = promised.weight if rights is None or rights.max_weight is None else rights.max_weight
    return min(claimed, most, max(promised.weight, config.bounds.max_weight))


def _limit_ms(config: Config, promised: ClassConfig, tenant: str, kind: str, claimed: float) -> float:
    """What a claimed limit (``ttft``, ``tpot``, ``e2e`` or ``ttfat``) counts as, in milliseconds."""
    rights = config.tenants.get(tenant)
    least: float | None = None if rights is None else getattr(rights, f"min_{kind}_ms")
    if least is None:
        least = getattr(promised, f"{kind}_ms") or 0.0
    return max(claimed, least, float(getattr(config.bounds, f"min_{kind}_ms")))


def program_number(tenant: str, program: str) -> int:
    """A tenant's program as a number from 0 to 2**62 - 1: a hash, since names kept would fill the memory.

    Examples
    --------
    >>> program_number("a", "task-1") == program_number("a", "task-1")
    True
    >>> program_number("a", "task-1") == program_number("b", "task-1")
    False
    """
    name = f"{tenant}\0{program}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest()) >> 2


def _number(value: object) -> float | None:
    """A finite number, also when written as a short string; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 32:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class Tenants:
    """The tenants of one engine, at most `most` at once.

    A name takes a place in the table for as long as it has requests, and keeps it afterwards until it is
    forgotten or another needs it. Whoever sends under many names drives out none that has requests.

    Parameters
    ----------
    table
        The table whose ``tenants`` are kept.
    most
        Places, at least 1; `OTHER_TENANTS` has one more.
    """

    def __init__(self, table: RequestTable, most: int) -> None:
        self._table, self._most = table, most
        self._live: dict[str, int] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()
        self._free: list[int] = []

    def __len__(self) -> int:
        """Names besides `OTHER_TENANTS`."""
        return len(self._live) - (OTHER_TENANTS in self._live) + len(self._idle)

    def joins(self, name: str) -> str:
        """A request of this tenant has come; returns the name it counts under."""
        known = name in self._live or name in self._idle or name == OTHER_TENANTS
        if not known and not self._make_room():
            name = OTHER_TENANTS
        if self._free and name not in self._table.tenants:
            self._table.tenants[self._free.pop()] = name
        self._idle.pop(name, None)
        self._live[name] = self._live.get(name, 0) + 1
        return name

    def leaves(self, name: str, now_s: float) -> None:
        """A request of this tenant has left."""
        left = self._live.get(name, 0) - 1
        if left > 0:
            self._live[name] = left
        elif self._live.pop(name, None) is not None and name != OTHER_TENANTS:
            self._idle[name] = now_s

    def forget(self, now_s: float) -> None:
        """Forget who has had no request for `FORGOTTEN_S` seconds."""
        while self._idle and now_s - next(iter(self._idle.values())) > FORGOTTEN_S:
            self._drop()

    def _make_room(self) -> bool:
        if len(self) >= self._most:
            if not self._idle:
                return False
            self._drop()
        return True

    def _drop(self) -> None:
        """Forget the tenant that has been idle longest; its place in the table is the next newcomer's."""
        name, _ = self._idle.popitem(last=False)
        if name in self._table.tenants:
            place = self._table.tenants.index(name)
            self._table.tenants[place] = ""
            self._free.append(place)
