"""What `slosched compare` compares: from a YAML or TOML file, the command line, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from slosched.cli.common import MOST_SEQS, MOST_TOKENS
from slosched.core.errors import InputError
from slosched.lab.configfile import config_words, parse_config


class CompareConfig(BaseModel):
    """A comparison; its fields are the options of ``slosched compare``, which are the keys of a config file.

    Where an option may be given several times, a file has a list, or one value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: str = "mixed"
    trace: list[str] = Field(default_factory=list)
    slo: list[str] = Field(default_factory=list)
    forecast: str | None = None
    duration: float = Field(default=300.0, gt=0)
    requests: int = Field(default=2000, ge=1)
    engine: str = "h100-llama-3.1-8b"
    max_num_seqs: int | None = Field(default=None, ge=1, le=MOST_SEQS)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    kv_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    engines: int = Field(default=1, ge=1)
    router: str | None = None
    on: str = "simulator"
    depth: int = Field(default=1, ge=1)
    asynchronous: bool = Field(default=False, alias="async")
    policy: list[str] = Field(default_factory=list)
    load: list[float] = Field(default_factory=list)
    rate: list[float] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0)
    seeds: int = Field(default=3, ge=1)
    jobs: int | None = Field(default=None, ge=1)
    out: Path | None = None

    @field_validator("trace", "slo", "policy", "load", "rate", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        """One value stands for a list of one."""
        return given if isinstance(given, list | tuple) else [given]


def load_config(path: Path | None, options: dict[str, Any]) -> CompareConfig:
    """The config in a file with the options that were given on the command line on top.

    Parameters
    ----------
    path
        File ending in .yaml, .yml or .toml; None for no file.
    options
        Options by key; None or an empty list means not given.

    Raises
    ------
    InputError
        If the file is malformed, has an unknown key (the message lists the known ones), or a value is
        outside its domain.
    """
    try:
        content = {} if path is None else parse_config(path)
    except UnicodeDecodeError:
        raise InputError(f"{path} must be text in UTF-8.") from None
    # An option's name as on the command line, or as Python has it; YAML 1.1 reads the key `on` as true.
    content = {"on" if key == "True" else key.replace("-", "_"): value for key, value in content.items()}
    content |= {key: value for key, value in options.items() if value not in (None, [])}
    try:
        return CompareConfig.model_validate(content)
    except ValidationError as error:
        where = "options" if path is None else str(path)
        raise InputError(config_words(error, where, CompareConfig)) from None
