"""The configuration file named by ``SLOSCHED_CONFIG``: classes, policy, bounds, guards, metrics."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from slosched.core.errors import InputError

VARIABLE = "SLOSCHED_CONFIG"
MAX_MS = 86_400_000.0
"""A day: no limit may be longer, since a longer one is surely a mistake of unit."""

Milliseconds = Field(default=None, gt=0, le=MAX_MS)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, content: object) -> object:
        """``ttft_ms: yes`` is a mistake, not a millisecond; a section with nothing in it is the default."""
        if not isinstance(content, dict):
            return content
        meant = dict(content)
        for name, value in content.items():
            known = cls.model_fields.get(name)
            kind = None if known is None else known.annotation
            kinds = (kind, *get_args(kind))
            if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
                raise ValueError(f"{name} must be a number, got {str(value).lower()}")
            if value is None and (get_origin(kind) is dict or _is_section(kind)):
                del meant[name]
            if isinstance(value, str) and Path in kinds:
                meant[name] = _path(name, value)
            if isinstance(value, dict) and any(_is_section(part) for part in get_args(kind)):
                meant[name] = {key: {} if part is None else part for key, part in value.items()}
        return meant


def _path(name: str, value: str) -> str:
    """A path with the user's folder and variables put in, as a shell would."""
    path = os.path.expanduser(os.path.expandvars(value))
    if "\0" in path or re.search(r"\$\{?\w", path):
        raise ValueError(f"{name} must be a path whose variables are all set, got {value!r}")
    return path


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


MAX_NAME = 128
"""Characters of a class, tenant or program."""


def is_name(value: object) -> bool:
    """Whether a client may say it: some text that can be written, half a character, as JSON may hold, not."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"must be a text of 1 to {MAX_NAME} characters, as clients may say it")
    return value


Name = Annotated[str, AfterValidator(_named)]


class ClassConfig(_Section):
    """What requests of one class are promised unless they say otherwise themselves."""

    ttft_ms: float | None = Milliseconds
    tpot_ms: float | None = Milliseconds
    e2e_ms: float | None = Milliseconds
    ttfat_ms: float | None = Milliseconds
    weight: float = Field(default=1.0, ge=0, le=1e6)
    predicted_output_tokens: float | None = Field(default=None, ge=1, le=1e7)


BEST_EFFORT = ClassConfig()


class RightsConfig(_Section):
    """What a tenant may claim at most: tighter limits and greater weights count as these.

    Left out, a weight counts at most as that of the request's class, and a limit is at most as tight as that
    of the class where it has one: nobody gains by claiming.
    """

    min_ttft_ms: float | None = Milliseconds
    min_tpot_ms: float | None = Milliseconds
    min_e2e_ms: float | None = Milliseconds
    min_ttfat_ms: float | None = Milliseconds
    max_weight: float | None = Field(default=None, ge=0, le=1e6)


class BoundsConfig(_Section):
    """What any client may claim at most, whatever the rights of its tenant; how many tenants there may be."""

    min_ttft_ms: float = Field(default=20.0, gt=0, le=MAX_MS)
    min_tpot_ms: float = Field(default=1.0, gt=0, le=MAX_MS)
    min_e2e_ms: float = Field(default=20.0, gt=0, le=MAX_MS)
    min_ttfat_ms: float = Field(default=20.0, gt=0, le=MAX_MS)
    max_weight: float = Field(default=10.0, ge=0, le=1e6)
    max_tenants: int = Field(default=1000, ge=1, le=1_000_000)


class AdmissionConfig(_Section):
    """What the front process (`slosched.integrations.vllm.front.Front`) refuses before an answer begins.

    A request with a limit whose chance to keep it is below `min_chance`, or any request whose expected wait
    is above `max_wait_s`, is answered 429 with ``Retry-After``; 0 and none refuse nobody. Engines publish
    their state for it in `folder`, by default in memory; ``publish`` switches that off.
    """

    min_chance: float = Field(default=0.0, ge=0, lt=1)
    max_wait_s: float | None = Field(default=None, gt=0, le=86_400)
    publish: bool = True
    publish_every_ms: float = Field(default=100.0, ge=10, le=10_000)
    folder: Path | None = None


class GuardsConfig(_Section):
    """What keeps a policy from hurting the engine.

    Planning may take `time_box_us` of processor time on the engine's thread in a step, or `time_box_share` of
    a decoding step if that is more; a policy that needs more plans in the background on the last state. A
    background plan longer than `plan_limit_ms` is a failure. `breaker_failures` failed plans in a row turn
    the policy off for good.

    A request is preempted only after `min_run_ms` and if it is expected to run for more than
    `preempt_margin_ms`. One that has waited longer than `max_wait_s` goes first, at most one in
    `starvation_gap_s`. One at the head that does not fit in memory may be passed by others for
    `bypass_unfit_s` seconds, 0 for never.
    """

    time_box_us: float = Field(default=200.0, gt=0, le=1e7)
    time_box_share: float = Field(default=0.02, ge=0, le=1)
    plan_limit_ms: float = Field(default=1000.0, gt=0, le=1e6)
    breaker_failures: int = Field(default=5, ge=1, le=10_000)
    preempt: bool = True
    max_preemptions_per_step: int = Field(default=2, ge=0, le=1000)
    max_preemptions_per_request: int = Field(default=3, ge=0, le=1000)
    min_run_ms: float = Field(default=200.0, ge=0, le=MAX_MS)
    preempt_margin_ms: float = Field(default=100.0, ge=0, le=MAX_MS)
    max_wait_s: float = Field(default=300.0, gt=0, le=86_400)
    starvation_gap_s: float = Field(default=1.0, gt=0, le=3600)
    bypass_unfit_s: float = Field(default=0.0, ge=0, le=86_400)


class ForecastConfig(_Section):
    """Where length forecasts come from: the class's history, a ranker's folder (``prior``: the one that ships
    with slosched) and the client's hint, weighed by how right each has been. A ranker has no say until it has
    earned it, unless `trust`, from 0 to 1, lets it begin with that weight. A probe replaces all once the
    prompt is computed. A ranker slower than `limit_ms` on the engine's thread counts as failed.
    """

    ranker: Path | None = None
    probe: Path | None = None
    trust: float = Field(default=0.0, ge=0, le=1)
    client_hint: bool = True
    limit_ms: float = Field(default=20.0, gt=0, le=MAX_MS)


class ThinkingConfig(_Section):
    """The mark that ends thinking: one token, as a number, or as text that is one token of the model, such as
    ``</think>``. The first token after it is the first answer token.
    """

    end: int | str

    @field_validator("end", mode="before")
    @classmethod
    def _is_a_mark(cls, value: object) -> object:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not number and not (isinstance(value, str) and 0 < len(value) <= 64):
            raise ValueError("must be a token number of at least 0, or a text of 1 to 64 characters")
        return value


class MetricsConfig(_Section):
    """Where metrics go besides vLLM's own page: an own port, a JSON file, a line in the log.

    With data parallelism, rank r has the port ``port + r``, and each rank but the first has files of its own,
    ``metrics.rank1.json``. `address` is where the port listens, by default loopback if the server does, else
    everywhere.
    """

    port: int | None = Field(default=None, ge=1, le=65_535)
    address: str | None = Field(default=None, min_length=1, max_length=255)
    json_file: Path | None = None
    json_every_s: float = Field(default=10.0, gt=0, le=86_400)
    log_every_s: float = Field(default=60.0, gt=0, le=86_400)

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        """A name, or an address of either kind; a port stands apart."""
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", value):
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise ValueError("must be a host or an IP address, without a port") from None
        return value


class Config(_Section):
    """All settings; every one has a default, so that no file is needed.

    Examples
    --------
    >>> config = Config.model_validate({"classes": {"chat": {"ttft_ms": 500}}, "default_class": "chat"})
    >>> config.classes["chat"].ttft_ms
    500.0
    """

    policy: str = "slosched"
    policy_parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0)
    classes: dict[Name, ClassConfig] = Field(default_factory=dict)
    default_class: str = "default"
    engine: str = "h100-llama-3.1-8b"
    state_file: Path | None = None
    step_log: Path | None = None
    state_every_s: float = Field(default=5.0, gt=0, le=86_400)
    tenants: dict[Name, RightsConfig] = Field(default_factory=dict)
    observe_only: bool = False
    allow_reject: bool = False
    bounds: BoundsConfig = BoundsConfig()
    guards: GuardsConfig = GuardsConfig()
    metrics: MetricsConfig = MetricsConfig()
    admission: AdmissionConfig = AdmissionConfig()
    forecast: ForecastConfig = ForecastConfig()
    thinking: ThinkingConfig | None = None

    @field_validator("forecast", mode="before")
    @classmethod
    def _class_history(cls, value: object) -> object:
        """``forecast: class-history`` is the default, written out."""
        return {} if value == "class-history" else value

    @model_validator(mode="after")
    def _default_class_exists(self) -> Config:
        if self.default_class != "default" and self.default_class not in self.classes:
            known = ", ".join(["default", *self.classes])
            raise ValueError(f"default_class must be one of the classes {known}, got {self.default_class!r}")
        for name, promised in self.classes.items():
            if promised.ttfat_ms is not None and self.thinking is None:
                raise ValueError(
                    f"class {name!r} has ttfat_ms: thinking.end must name the mark that ends thinking"
                )
        return self

    @model_validator(mode="after")
    def _files_are_no_folders(self) -> Config:
        files = {
            "state_file": self.state_file, "step_log": self.step_log,
            "metrics.json_file": self.metrics.json_file,
        }  # fmt: skip
        places: dict[str, str] = {}
        for name, path in files.items():
            if path is None:
                continue
            try:
                folder = path.is_dir()
            except OSError as error:
                raise ValueError(f"{name} must name a place that can be reached: {error}") from error
            if folder:
                raise ValueError(f"{name} must name a file, got the folder {str(path)!r}")
            other = places.setdefault(os.path.abspath(path), name)
            if other != name:
                raise ValueError(f"{name} must name another file than {other}, got {str(path)!r} for both")
        return self


def load_config(path: str | Path | None = None) -> Config:
    """Read a YAML, TOML or JSON file, by default that of ``SLOSCHED_CONFIG``; defaults if there is none.

    Raises
    ------
    InputError
        If the file cannot be read, or a key or value is not allowed; the message names the field, and for an
        unknown key the known ones.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        return Config()
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = _content(path.suffix.lower(), text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{VARIABLE} must name a readable file, got {str(path)!r} ({error}).") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        kind = {".toml": "TOML", ".json": "JSON"}.get(path.suffix.lower(), "YAML")
        raise InputError(f"{path} must be valid {kind}: {error}") from error
    except (ValueError, AttributeError) as error:  # a day or a number that the reader itself cannot make
        raise InputError(f"{path} must hold days and numbers that exist: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} must not be nested so deep that it cannot be read.") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of settings, got {type(content).__name__}.")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _content(suffix: str, text: str) -> Any:
    """What a file says, by its name's ending; YAML where that says nothing."""
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix == ".json":  # may be indented by tabs, which YAML refuses
        return json.loads(text, object_pairs_hook=_pairs) if text.strip() else None
    return yaml.load(text, _Once)  # a safe loader, with a check of its own


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, whose keys must all differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise json.JSONDecodeError(f"{twice!r} is set twice", "", 0)
    return found


class _Once(yaml.SafeLoader):
    """Refuses a mapping that has a key twice: of two settings one would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node whose keys all differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):  # a list or a mapping as a key: no setting has one
                continue
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is set twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":
        said = str(error["msg"]).removeprefix("Value error, ")
        simple = not isinstance(error["input"], dict | BaseModel)
        return (f"{place}: " if place else "") + said + (f", got {error['input']!r}" if simple else "")
    if error["type"] == "extra_forbidden":
        known = ", ".join(_section(error["loc"][:-1]).model_fields)
        return f"{place} is not a known setting; known here are {known}"
    return f"{place}: {error['msg']}, got {error['input']!r}"


def _section(place: tuple[Any, ...]) -> type[BaseModel]:
    """The section of the settings at a place such as ("classes", "chat")."""
    if not place:
        return Config
    annotation = Config.model_fields[place[0]].annotation
    kinds = (annotation, *get_args(annotation))
    return next(kind for kind in kinds if isinstance(kind, type) and _is_section(kind))
