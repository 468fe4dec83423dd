"""Policies by name: one grammar for the command line, configuration files, studies, vLLM and Python.

``name`` · ``name:key=value,key=value`` · ``package.module:Class`` · ``package.module:Class:key=value`` — each
with ``@TOKENS`` at its end (or after the name) for an engine with that token budget. Nothing is imported
before it is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from slosched.core.errors import InputError
from slosched.core.named import load, make, near, split
from slosched.policies.base import Policy

GROUP = "slosched.policies"
"""Entry-point group under which an installed package offers policies by name."""

GRAMMAR = "NAME or package.module:Class, then :KEY=VALUE,… and @TOKENS if wanted"

MOST_BUDGET = 2**31 - 1
"""Tokens of a budget, at most: what 32 bits hold, thousands of times what a GPU does in a step."""
MOST_DIGITS = 20
"""Digits of a number that are looked at; so many are beyond any budget."""

_HERE = "slosched.policies"
_RIVALS = "slosched.policies.rivals"

HOMES = {
    "fcfs": f"{_HERE}.orders:Fcfs",
    "priority": f"{_HERE}.orders:Priority",
    "edf": f"{_HERE}.orders:Edf",
    "edf+d": f"{_HERE}.orders:EdfDemote",
    "least-laxity": f"{_HERE}.orders:LeastLaxity",
    "least-laxity+d": f"{_HERE}.orders:LeastLaxityDemote",
    "sjf": f"{_HERE}.orders:Sjf",
    "sjf+d": f"{_HERE}.orders:SjfDemote",
    "srpt": f"{_HERE}.orders:Srpt",
    "hrrn": f"{_HERE}.orders:Hrrn",
    "hrrn+d": f"{_HERE}.orders:HrrnDemote",
    "huang": f"{_RIVALS}.huang:Huang",
    "ltr": f"{_RIVALS}.ltr:Ltr",
    "trail": f"{_RIVALS}.trail:Trail",
    "qoserve": f"{_RIVALS}.qoserve:QoServe",
    "scorpio": f"{_RIVALS}.scorpio:Scorpio",
    "proserve": f"{_RIVALS}.proserve:ProServe",
    "jitserve": f"{_RIVALS}.jitserve:JitServe",
    "jitserve-code": f"{_RIVALS}.jitserve:JitServeCode",
    "cascade": f"{_RIVALS}.cascade:Cascade",
    "fairbatching": f"{_RIVALS}.fairbatching:FairBatching",
    "slidingserve": f"{_RIVALS}.slidingserve:SlidingServe",
    "slos-serve": f"{_RIVALS}.slos_serve:SlosServe",
    "wspt": f"{_HERE}.wspt:Wspt",
    "tie": f"{_RIVALS}.tie:Tie",
    "las": f"{_RIVALS}.attained:Las",
    "mlfq": f"{_RIVALS}.attained:Mlfq",
    "plas": f"{_RIVALS}.attained:Plas",
    "atlas": f"{_RIVALS}.attained:Atlas",
    "lpm": f"{_RIVALS}.sglang:Lpm",
    "hrrn-sglang": f"{_RIVALS}.sglang:HrrnSglang",
    "uniboost": f"{_RIVALS}.uniboost:UniBoost",
    "uniboost-sglang": f"{_RIVALS}.uniboost:UniBoostSglang",
    "paced-edf": f"{_HERE}.paced:PacedEdf",
    "paced-wspt": f"{_HERE}.paced:PacedWspt",
    "paced-srpt": f"{_HERE}.paced:PacedSrpt",
    "past-future": f"{_RIVALS}.past_future:PastFuture",
    "aibrix-slo": f"{_RIVALS}.gateways:AibrixSlo",
    "llm-d-deadline": f"{_RIVALS}.gateways:LlmdDeadline",
    "slai": f"{_RIVALS}.slai:Slai",
    "slosched": "slosched.policies.slosched:Slosched",
}
"""Where each policy of this package lives, by name."""

Factory = Callable[..., Policy]


class _Lazy(Mapping[str, Factory]):
    """Names to factories; a factory is imported when it is asked for."""

    def __getitem__(self, name: str) -> Factory:
        found: Factory = _load(HOMES[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


POLICIES: Mapping[str, Factory] = _Lazy()
"""Every policy of this package by name; call one to get a fresh object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """A policy as words name it: what to call, with which parameters, on which token budget.

    Parameters
    ----------
    label
        As written; the name of the policies it makes, in every table.
    name
        A known name, or ``package.module:Class``.
    parameters
        Its own parameters.
    budget_tokens
        Token budget that the engine is to have, or None for its own.

    Examples
    --------
    >>> spec = PolicySpec.parse("edf+d@512")
    >>> spec.name, spec.budget_tokens
    ('edf+d', 512)
    >>> PolicySpec.parse("slosched.policies.orders:Edf").make().steady
    True
    >>> PolicySpec.parse("efd")
    Traceback (most recent call last):
    slosched.core.errors.InputError: policy must be one of fcfs, ... got 'efd'. Did you mean edf?
    """

    label: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    budget_tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """The policy of these words; it is made once, so that mistakes show here.

        Raises
        ------
        InputError
            If policy, parameter or token budget are unknown or malformed; the message lists what is known.
        """
        found = cls._split(text)
        found.make()
        return found

    @classmethod
    def _split(cls, text: str) -> PolicySpec:
        """The parts of the words, not looked up."""
        label = words = text.strip()
        budget: str | None = None
        if last := re.search(r"@(\d+)$", words):
            budget, words = last.group(1), words[: last.start()]
        name, parameters = split(words, "policy", GRAMMAR)
        if "@" in name:
            name, _, budget = name.partition("@")
        if budget is not None and not (budget.isdigit() and 0 < int(budget[:MOST_DIGITS]) <= MOST_BUDGET):
            domain = f"@ and a whole number from 1 to {MOST_BUDGET}"
            raise InputError(f"token budget of a policy must be {domain}, got {text!r}.")
        budget_tokens = None if budget is None else int(budget)
        return cls(label=label, name=name, parameters=parameters, budget_tokens=budget_tokens)

    def make(self, seed: int = 0, **defaults: object) -> Policy:
        """A fresh policy object.

        Parameters
        ----------
        seed
            Seed of a policy that draws random numbers; others ignore it.
        defaults
            Parameters for a policy that has them and where `parameters` has none.
        """
        made: Policy = make(
            self.name, find_policy(self.name), self.parameters, kind="policy", base=Policy, seed=seed,
            defaults=defaults,
        )  # fmt: skip
        if self.parameters or self.budget_tokens or ":" in self.name:
            # An instance of a class whose `name` is the bare one: reports tell variants apart by the label.
            object.__setattr__(made, "name", self.label)
        if self.budget_tokens is not None:
            made.budget_tokens = self.budget_tokens
        return made


def policy(name: str, *, seed: int = 0, **parameters: object) -> Policy:
    """A fresh policy object by name.

    Parameters
    ----------
    name
        ``name``, ``name:key=value,…`` or ``package.module:Class``, perhaps with ``@TOKENS``; see
        `PolicySpec`.
    seed
        Seed of a policy that draws random numbers; others ignore it.
    parameters
        The policy's own parameters, over those in `name`.

    Raises
    ------
    InputError
        If the name or a parameter is unknown; the message lists the known ones.

    Examples
    --------
    >>> policy("edf+d").name
    'edf+d'
    >>> policy("trail:preemptible_share=0.5").name
    'trail:preemptible_share=0.5'
    """
    spec = PolicySpec._split(name)
    spec.parameters.update(parameters)
    return spec.make(seed)


def policy_of(given: str | Policy, *, seed: int = 0) -> Policy:
    """A policy object as it is, or a fresh one by name; one of others is watched (`watch`)."""
    chosen = policy(given, seed=seed) if isinstance(given, str) else given
    if type(chosen).__module__.startswith("slosched."):
        return chosen
    from slosched.policies.watched import watch

    return watch(chosen)


def installed() -> dict[str, str]:
    """Policies that other installed packages offer (entry-point group `GROUP`): ``module:Class`` by name."""
    return {point.name: point.value for point in _offers() if point.name not in HOMES}


def unused() -> dict[str, str]:
    """Offers of installed packages that no name leads to, with the reason in words, by ``module:Class``."""
    offers, names = _offers(), installed()
    return {
        point.value: f"{point.name} is taken by " + ("slosched" if point.name in HOMES else names[point.name])
        for point in offers
        if names.get(point.name) != point.value
    }


def _offers() -> list[EntryPoint]:
    """What installed packages offer, in one order on every machine; of two with one name the last counts."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value), reverse=True)


def find_policy(name: str) -> Factory:
    """What makes the policy of a name or of ``package.module:Class``.

    Raises
    ------
    InputError
        If there is none; the message lists the known names, or what the module holds.
    """
    if name in HOMES:
        return POLICIES[name]
    offered = installed()
    if name in offered:
        try:
            return _load(offered[name])
        except InputError as error:
            raise InputError(f"policy {name!r} of an installed package cannot be loaded: {error}") from error
    if ":" in name:
        return _load(name)
    known = [*HOMES, *offered]
    several = " Several policies: --policy for each." if "," in name else ""
    raise InputError(
        f"policy must be one of {', '.join(known)}, or package.module:Class, got {name!r}."
        + (several or near(name, known))
    )


def _load(place: str) -> Factory:
    found: Factory = load(place, "policy", Policy)
    return found
