"""Configuration files in YAML or TOML, and what is wrong with them in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from slosched.core.errors import InputError


def parse_config(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML or TOML file.

    Raises
    ------
    InputError
        If it is malformed.
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} must be valid {path.suffix.lstrip('.').upper()}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys with values, got {content!r}.")
    return {str(key): value for key, value in content.items()}


def config_words(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """The first thing wrong with a config, in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(field.alias or name for name, field in model.model_fields.items())
        return f"{where}: key must be one of {known}, got {key!r}."
    if first["type"] == "value_error" and not key:
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    return f"{where}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}."
