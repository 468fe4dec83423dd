"""What a study of the evidence runs: mixes by loads by forecasts by policies by seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slosched.core.errors import InputError, require
from slosched.core.limits import EngineLimits
from slosched.lab.configfile import config_words, parse_config
from slosched.policies import POLICIES, PolicySpec
from slosched.timing.presets import preset
from slosched.workloads.mixes import MIXES
from slosched.workloads.noise import FORECASTS

OURS, REFERENCE = "slosched", "fcfs"
PRIORITY = "priority"


class EvidenceConfig(BaseModel):
    """A study; field names are the keys of a config file (YAML or TOML)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "h100-llama-3.1-8b"
    mixes: tuple[str, ...] = tuple(MIXES)
    loads: tuple[float, ...] = (0.5, 0.8, 1.0, 1.2, 1.4, 1.6)
    forecasts: tuple[str, ...] = ("predictor-5", "oracle", "class-mean")
    policies: tuple[str, ...] = (*POLICIES, "edf+d@512", "sjf+d@512")
    seeds: int = Field(default=10, ge=1)
    first_seed: int = Field(default=0, ge=0)
    requests: int = Field(default=600, ge=10)

    @model_validator(mode="after")
    def _domains(self) -> Self:
        preset(self.preset)
        for name, values, known in (
            ("mixes", self.mixes, tuple(MIXES)),
            ("forecasts", tuple(f.partition(":")[0] for f in self.forecasts), FORECASTS),
        ):
            for value in values:
                require(value in known, name, f"among {', '.join(known)}", value)
        for load in self.loads:
            require(0 < load < 100, "loads", "above 0 and below 100 times the capacity", load)
        for name in ("mixes", "loads", "forecasts", "policies"):
            given = getattr(self, name)
            require(len(given) > 0, name, "one or more", given)
            require(len(dict.fromkeys(given)) == len(given), name, "distinct", given)
        names = [contender.name for contender in self.contenders]
        ok = OURS in self.policies and any(name != OURS for name in names)
        require(ok, "policies", f"{OURS} and at least one rival", ", ".join(self.policies))
        return self

    @property
    def contenders(self) -> list[PolicySpec]:
        """Policies with their parameters."""
        return [PolicySpec.parse(text) for text in self.policies]

    @property
    def rivals(self) -> list[str]:
        """Labels of the policies that are not ours, variants of ours left out."""
        return [contender.label for contender in self.contenders if contender.name != OURS]


def engine_limits(preset_name: str, mix: str) -> EngineLimits:
    """The engine of a mix: those with shared prefixes have the prefix cache, agents 64k of context."""
    limits = preset(preset_name).limits
    if mix in ("mooncake", "agentic"):
        limits = replace(limits, prefix_cache=True)
    # Contexts beyond 64k tokens leave room for three requests at a time.
    return replace(limits, max_model_len=65_536) if mix == "agentic" else limits


SMALL = EvidenceConfig(
    mixes=("azure", "sharegpt-batch", "mooncake"),
    loads=(0.6, 1.0, 1.4),
    forecasts=("predictor-5",),
    policies=(*(p for p in POLICIES if p != "huang"), "edf+d@512"),
    seeds=3,
    requests=150,
)
"""A small study, meant for minutes rather than hours on two cores."""

FULL = EvidenceConfig()
"""The whole grid, for a cluster or a patient machine."""


def load_evidence(path: Path | None, base: EvidenceConfig = SMALL, **changes: Any) -> EvidenceConfig:
    """A preset with the keys of a file, and then of the command line, over it.

    Parameters
    ----------
    path
        File ending in .yaml, .yml or .toml, or None.
    base
        What the file does not name.
    changes
        Keys with values; None or empty for not given.

    Raises
    ------
    InputError
        If the file is malformed, a key is unknown (the message lists the known ones) or a value is out of
        its domain.
    """
    content = {} if path is None else parse_config(path)
    content |= {key: value for key, value in changes.items() if value not in (None, [], ())}
    try:
        return EvidenceConfig.model_validate(base.model_dump() | content)
    except ValidationError as error:
        where = "options" if path is None else str(path)
        raise InputError(config_words(error, where, EvidenceConfig)) from None
