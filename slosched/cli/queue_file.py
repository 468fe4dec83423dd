"""A queue in a JSON or CSV file, as `slosched order` reads it.

A request has the fields of `slosched.core.request.Request`: request_id, prompt_tokens, forecast (a number of
output tokens, or in JSON quantiles such as {"0.5": 120, "0.9": 700}), ttft_s, tpot_s, e2e_s, ttfat_s (the
limit on the first answer token) with thinking (a forecast of the tokens before it), arrival_s, weight,
priority, slo_class, tenant, generated_tokens, and state: waiting (the default) or running. JSON holds a list
of them, or an object with the keys requests and now_s; CSV has a header, and an empty cell is an
absent value.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from slosched.core.engine import Engine
from slosched.core.errors import DataError, InputError
from slosched.core.forecast import LengthForecast
from slosched.core.reading import open_text, read_text
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a text of whole, printable characters")
    return name


Name = Annotated[str, AfterValidator(_printable)]
"""A name that can be shown: half a character, as JSON may hold, or a control character cannot."""


class QueueRequest(BaseModel):
    """One request of the file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    request_id: Name
    prompt_tokens: int = Field(ge=1)
    forecast: float | dict[float, float]
    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2e_s: float | None = Field(default=None, gt=0)
    ttfat_s: float | None = Field(default=None, gt=0)
    thinking: float | dict[float, float] | None = None
    arrival_s: float = 0.0
    weight: float = Field(default=1.0, ge=0)
    priority: int = 0
    slo_class: Name = "default"
    tenant: Name = "default"
    generated_tokens: int = Field(default=0, ge=0)
    state: Literal["waiting", "running"] = "waiting"

    def request(self) -> Request:
        """The request itself."""
        limits = {"ttft_s", "tpot_s", "e2e_s", "ttfat_s"}
        rest = self.model_dump(exclude={"forecast", "thinking", "state", *limits})
        return Request(
            forecast=_forecast(self.forecast),
            thinking=None if self.thinking is None else _forecast(self.thinking),
            slo=Slo(**self.model_dump(include=limits)),
            **rest,
        )


def _forecast(known: float | dict[float, float]) -> LengthForecast:
    return LengthForecast.quantiles(known) if isinstance(known, dict) else LengthForecast.point(known)


def read_queue(path: Path, engine: Engine) -> Snapshot:
    """The queue in a file as a snapshot of an engine.

    Raises
    ------
    InputError
        If the file is malformed; the message names file, row, field, domain and value.
    """
    rows, now_s = _json(path) if path.suffix == ".json" else (_csv(path), None)
    if not rows:
        raise DataError(path, None, "requests", "one or more", 0)
    parsed = [_checked(path, number, row) for number, row in enumerate(rows, start=1)]
    requests: dict[str, list[Request]] = {"waiting": [], "running": []}
    longest = min(engine.limits.max_model_len, engine.limits.kv_tokens)
    for number, row in enumerate(parsed, start=1):
        if row.prompt_tokens + row.generated_tokens >= longest:
            domain = f"below {longest}, what the engine can hold"
            raise DataError(path, number, "prompt_tokens", domain, row.prompt_tokens + row.generated_tokens)
        try:
            requests[row.state].append(row.request())
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error}") from None
    return Snapshot.of(
        requests["waiting"],
        requests["running"],
        now_s=now_s,
        engine=engine,
    )


def _json(path: Path) -> tuple[Sequence[Any], float | None]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(path, None, "content", "JSON", f"{error.msg} at line {error.lineno}") from None
    if isinstance(content, list):
        return content, None
    if not isinstance(content, dict) or not isinstance(content.get("requests"), list):
        raise DataError(
            path, None, "content", "a list of requests, or an object with requests", type(content).__name__
        )
    for key in content:
        if key not in ("requests", "now_s"):
            raise DataError(path, None, "key", "one of requests, now_s", key)
    now_s = content.get("now_s")
    if now_s is not None and not (isinstance(now_s, int | float) and abs(now_s) < float("inf")):
        raise DataError(path, None, "now_s", "a finite number of seconds", now_s)
    return content["requests"], now_s


def _csv(path: Path) -> list[dict[str, str]]:
    with open_text(path) as file:
        rows = []
        for number, row in enumerate(csv.DictReader(file), start=1):
            if None in row or None in row.values():
                raise DataError(path, number, "cells", "as many as the header has", len(list(row.values())))
            rows.append({name: value for name, value in row.items() if value.strip()})
    return rows


def _checked(path: Path, number: int, row: Any) -> QueueRequest:
    try:
        return QueueRequest.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "request"
        if first["type"] == "missing":
            raise DataError(path, number, field, "present", row) from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(QueueRequest.model_fields)
            raise DataError(path, number, "field", f"one of {known}", field) from None
        domain = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise DataError(path, number, field, domain, first["input"]) from None
