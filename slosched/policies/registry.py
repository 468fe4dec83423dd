"""Policies by name: one grammar for the command line, configuration files, studies, vLLM and Python.

``name`` · ``name:key=value,key=value`` · ``package.module:Class`` · ``package.module:Class:key=value`` — each
with ``@TOKENS`` at its end (or after the name) for an engine with that token budget. Nothing is imported
before it is named.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from slosched.core.errors import InputError
from slosched.policies.base import Policy

GROUP = "slosched.policies"
"""Entry-point group under which an installed package offers policies by name."""

GRAMMAR = "NAME or package.module:Class, then :KEY=VALUE,… and @TOKENS if wanted"

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
        label = text.strip()
        head, _, words = label.partition(":")
        if words and "=" not in words.partition(":")[0]:
            attribute, _, words = words.partition(":")
            attribute, at, budget = attribute.partition("@")
            head = f"{head}:{attribute}{at}{budget}"
        name, at, budget = head.partition("@")
        if not at and (late := re.search(r"@(\d+)$", words)):
            at, budget, words = "@", late.group(1), words[: late.start()]
        if at and not (budget.isdigit() and int(budget) > 0):
            raise InputError(f"token budget of a policy must be @ and a whole number above 0, got {text!r}.")
        parameters: dict[str, Any] = {}
        for word in filter(None, words.split(",")):
            key, equals, value = word.partition("=")
            if not equals or not key.strip():
                raise InputError(f"policy must be {GRAMMAR}, got {text!r}.")
            parameters[key.strip()] = _value(value.strip())
        budget_tokens = int(budget) if at else None
        return cls(label=label, name=name.strip(), parameters=parameters, budget_tokens=budget_tokens)

    def make(self, seed: int = 0, **defaults: object) -> Policy:
        """A fresh policy object.

        Parameters
        ----------
        seed
            Seed of a policy that draws random numbers; others ignore it.
        defaults
            Parameters for a policy that has them and where `parameters` has none.
        """
        factory = find_policy(self.name)
        known = parameters_of(factory)
        chosen = dict(self.parameters)
        if known is not None:
            for name in chosen:
                if name not in known or name == "seed":
                    own = [p for p in known if p != "seed"]
                    words = f"one of {', '.join(own) or 'none'}, got {name!r}."
                    raise InputError(f"parameter of policy {self.name!r} must be {words}" + _near(name, own))
            chosen |= {k: v for k, v in defaults.items() if k in known and k not in chosen}
            if "seed" in known:
                chosen["seed"] = seed
        try:
            made = factory(**chosen)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            own_words = ", ".join(known or ()) or "none"
            raise InputError(f"parameters of policy {self.name!r} ({own_words}): {error}") from None
        if not isinstance(made, Policy):
            raise InputError(
                f"policy {self.name!r} must make a slosched.Policy, got {type(made).__name__}: derive its "
                "class from slosched.Policy."
            )
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
    """A policy object as it is, or a fresh one by name."""
    return policy(given, seed=seed) if isinstance(given, str) else given


def installed() -> dict[str, str]:
    """Policies that other installed packages offer (entry-point group `GROUP`): ``module:Class`` by name."""
    return {point.name: point.value for point in entry_points(group=GROUP) if point.name not in HOMES}


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
        return _load(offered[name])
    if ":" in name:
        return _load(name)
    known = [*HOMES, *offered]
    raise InputError(
        f"policy must be one of {', '.join(known)}, or package.module:Class, got {name!r}."
        + _near(name, known)
    )


def parameters_of(factory: Factory) -> dict[str, Any] | None:
    """Parameters with their defaults; None where a factory takes any keyword."""
    found = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return {p.name: p.default for p in found}


def _load(place: str) -> Factory:
    """The object at ``package.module:Class``; modules in the working directory count."""
    module_name, _, attribute = place.partition(":")
    try:
        module = _import(module_name)
    except Exception as error:
        raise InputError(
            f"policy must name a module that can be imported, got {place!r} "
            f"({type(error).__name__}: {error})."
        ) from error
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Policy) and not inspect.isabstract(value)
        ]
        known = ", ".join(own) or "none"
        raise InputError(
            f"policy must name a class of {module_name} (policies there: {known}), got {place!r}."
            + _near(attribute, own)
        )
    made: Factory = found
    return made


def _import(name: str) -> Any:
    """A module; one in the working directory, too, which installed commands do not look into."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name is None or not name.startswith(error.name) or here in sys.path:
            raise
        sys.path.append(here)
        return import_module(name)


def _near(given: str, known: list[str]) -> str:
    """A sentence with the nearest known names, or nothing."""
    near = get_close_matches(given, known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _value(text: str) -> Any:
    """A number, true, false, none, or the words themselves."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
