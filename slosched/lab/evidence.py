"""The study behind our claims: policies over random scenarios, against the best rivals of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slosched.core.errors import InputError, require
from slosched.lab.cells import Cell, Contender, run_cells
from slosched.lab.configfile import config_words, parse_config
from slosched.lab.figures import STABLE
from slosched.lab.fleet import draw_fleet, load_scenario
from slosched.lab.named_cells import NAMED, named
from slosched.lab.parallel import Progress, Workers
from slosched.lab.population import FIRST_REPORTING_SEED, LAST_SEED, draw
from slosched.lab.scenarios import Scenario
from slosched.lab.statistics import Interval, League, league, ratios
from slosched.lab.store import Record, Store, digest_of

OURS, REFERENCE = "slosched", "fcfs"

LIGHT_LOAD = 0.7
"""Draws below this load whose queue is stable under FCFS show what a policy costs where nothing is short."""
CELL_SEEDS = 5

LIGHT = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s")
"""Figures compared with FCFS there, as ratios."""

MEANS = (
    "attainment", "lowest_class", "worst_tenant", "jain", "goodput_rps", "goodput_tps", "ttft_mean_s",
    "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_mean_s", "e2e_p50_s", "e2e_p99_s",
    "longest_wait_s", "refused", "preempted", "warm_up_weighted", "drain_weighted",
)  # fmt: skip
"""Figures shown as means over draws."""

SERVING = (
    "slosched", "fcfs", "edf+d@512", "qoserve:from_first=true", "slos-serve", "paced-edf", "paced-wspt",
)  # fmt: skip
REFUSING = ("slosched:hopeless=reject", "scorpio", "paced-wspt:hopeless=refuse")
BEHIND_ROUTERS = (
    "slosched", "slosched, router=least-tokens", "slosched, router=power-of-two", "slosched, router=lmetric",
    "slosched, router=llm-d-headroom:most=true", "slosched, router=polyserve", "fcfs, router=random",
)  # fmt: skip
"""Contenders where draws are fleets, and none are named."""
LEAGUES = {False: "serves everybody", True: "may refuse"}


class EvidenceConfig(BaseModel):
    """A study; field names are the keys of a config file (YAML, TOML or JSON).

    Parameters
    ----------
    policies
        Contenders, see `slosched.lab.cells.Contender`; the first of ours in each league is compared with all.
        By default a list of the strongest.
    engines
        Where given, random scenarios are fleets of these sizes, see `slosched.lab.fleet.draw_fleet`.
    draws, first_seed
        How many scenarios of the population, from which seed on: below 10,000 for tuning, from 10,000 on for
        reporting.
    cells, cell_seeds
        Named cells, each with so many seeds.
    scenarios
        Files of scenarios of your own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: tuple[str, ...] = ()
    engines: tuple[int, ...] = ()
    draws: int = Field(default=24, ge=0)
    first_seed: int = Field(default=FIRST_REPORTING_SEED, ge=0)
    cells: tuple[str, ...] = ()
    cell_seeds: int = Field(default=CELL_SEEDS, ge=1)
    scenarios: tuple[Path, ...] = ()

    @field_validator("policies", mode="before")
    @classmethod
    def _written(cls, given: Any) -> Any:
        """Policies as they are written on one line or in a list; engine knobs of one as keys."""
        if isinstance(given, str):
            return split_policies(given)
        return tuple(_words(item) for item in given) if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _domains(self) -> Self:
        require(all(n >= 1 for n in self.engines), "engines", "integers of at least 1", self.engines)
        if not self.policies:
            asked = "policies" in self.model_fields_set
            require(not asked, "policies", "one or more, or left out for the strongest", "none")
            chosen = BEHIND_ROUTERS if self.engines else (*SERVING, *REFUSING)
            object.__setattr__(self, "policies", chosen)
        for name in ("policies", "cells"):
            given = getattr(self, name)
            require(len(dict.fromkeys(given)) == len(given), name, "distinct", ", ".join(given))
        for text in self.policies:
            Contender.parse(text)
        for cell in self.cells:
            require(cell in NAMED, "cells", "among " + ", ".join(NAMED), cell)
        last = self.first_seed + self.draws - 1
        require(last <= LAST_SEED, "draws", f"such that no seed is above {LAST_SEED}", self.draws)
        ok = self.draws > 0 or bool(self.cells) or bool(self.scenarios)
        require(ok, "draws", "above 0, or named cells or scenarios given", self.draws)
        return self

    @property
    def contenders(self) -> list[Contender]:
        """The policies, in their order."""
        return [Contender.parse(text) for text in self.policies]

    def random(self) -> list[Scenario]:
        """Scenarios of the population."""
        seeds = range(self.first_seed, self.first_seed + self.draws)
        return [draw_fleet(seed, self.engines) if self.engines else draw(seed) for seed in seeds]

    def others(self) -> list[Scenario]:
        """Named cells with their seeds, then scenarios from files."""
        seeds = range(self.first_seed, self.first_seed + self.cell_seeds)
        own = [load_scenario(path) for path in self.scenarios]
        return [named(name, seed) for name in self.cells for seed in seeds] + own


def split_policies(text: str) -> tuple[str, ...]:
    """Policies in one line, separated by commas; a word with ``=`` belongs to the policy before it.

    Examples
    --------
    >>> split_policies("fcfs,qoserve:from_first=true,margin=1.1,edf+d@512")
    ('fcfs', 'qoserve:from_first=true,margin=1.1', 'edf+d@512')
    """
    found: list[str] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if found and re.match(r"[a-z_]+=", word):
            found[-1] += "," + word
        else:
            found.append(word)
    return tuple(found)


def _words(item: Any) -> Any:
    """A policy as one text, also where a config file gives engine knobs as keys beside it."""
    return Contender(**item).label if isinstance(item, dict) else item


def load_evidence(path: Path | None, **changes: Any) -> EvidenceConfig:
    """The default study with the keys of a file, and then of the command line, over it.

    Parameters
    ----------
    path
        File ending in .yaml, .yml, .toml or .json, or None.
    changes
        Keys with values; None or empty for not given.

    Raises
    ------
    InputError
        If the file is malformed, a key is unknown or a value is out of its domain.
    """
    try:
        content = {} if path is None else parse_config(path)
    except UnicodeDecodeError:
        raise InputError(f"{path} must be text in UTF-8.") from None
    content |= {key: value for key, value in changes.items() if value not in (None, [], ())}
    try:
        return EvidenceConfig.model_validate(content)
    except ValidationError as error:
        where = "options" if path is None else str(path)
        raise InputError(config_words(error, where, EvidenceConfig)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A finished study: every scenario under every contender.

    Parameters
    ----------
    config
        What was asked for.
    scenarios
        Random draws first.
    random
        How many of them are random draws.
    records
        {(label of contender, place of scenario): result}.
    """

    config: EvidenceConfig
    scenarios: tuple[Scenario, ...]
    random: int
    records: dict[tuple[str, int], Record]

    @property
    def labels(self) -> list[str]:
        """Labels of the contenders."""
        return [c.label for c in self.config.contenders]

    def column(self, label: str, figure: str, places: Sequence[int] | None = None) -> list[Any]:
        """A figure of one contender over scenarios, by default over the random draws."""
        where = range(self.random) if places is None else places
        return [self.records[label, place].result[figure] for place in where]

    @property
    def digest(self) -> str:
        """Digest of all results without what they were run on: equal on every machine."""
        return digest_of(*[record.result for record in self.records.values()])

    def summary(self) -> Summary:
        """What it says."""
        return _summary(self)


def cells_of(config: EvidenceConfig, scenarios: Sequence[Scenario] | None = None) -> list[Cell]:
    """All cells of a study, scenario by scenario: an interrupted study has whole draws."""
    some = [*config.random(), *config.others()] if scenarios is None else scenarios
    return [Cell(scenario=s, contender=c) for s in some for c in config.contenders]


def run_evidence(
    config: EvidenceConfig,
    store: Store,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    workers: Callable[[None, int], Workers[None]] = Workers,
) -> Evidence:
    """Run what the store does not have yet; parameters as in `slosched.lab.cells.run_cells`."""
    drawn = config.random()
    scenarios = (*drawn, *config.others())
    places = [(c.label, place) for place in range(len(scenarios)) for c in config.contenders]
    cells = cells_of(config, scenarios)
    records = run_cells(cells, store, jobs=jobs, progress=progress, workers=workers)
    return Evidence(
        config=config,
        scenarios=scenarios,
        random=len(drawn),
        records=dict(zip(places, records, strict=True)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a study says.

    Parameters
    ----------
    leagues
        Standings over the random draws by league: policies that serve everybody, policies that may refuse.
    light
        Ratios to FCFS below saturation, by policy and figure, and the number of draws.
    means
        Means over the random draws by policy and figure.
    cells
        Named cells and own scenarios: weighted attainment by policy, with an interval over seeds.
    queues
        How many random draws have a stable, a bursting, a growing queue, by policy.
    """

    leagues: dict[str, League]
    light: dict[str, dict[str, Interval]]
    light_draws: int
    means: dict[str, dict[str, float]]
    cells: dict[str, dict[str, Interval]]
    queues: dict[str, dict[str, int]]


def _summary(study: Evidence) -> Summary:
    contenders = study.config.contenders
    leagues = {}
    for refusing, title in LEAGUES.items():
        mine = [c for c in contenders if c.may_refuse == refusing]
        if mine and study.random:
            leagues[title] = _league(study, mine)
    light = [] if REFERENCE not in study.labels else _light_draws(study)
    return Summary(
        leagues=leagues,
        light={
            label: {
                figure: ratios(study.column(label, figure, light), study.column(REFERENCE, figure, light))
                for figure in LIGHT
            }
            for label in study.labels
        }
        if light
        else {},
        light_draws=len(light),
        means={label: _means(study, label) for label in study.labels} if study.random else {},
        cells=_cells(study),
        queues={label: _counts(study.column(label, "queue")) for label in study.labels},
    )


def _league(study: Evidence, contenders: Sequence[Contender]) -> League:
    ours = next((c.label for c in contenders if c.family == OURS), None)
    return league(
        {c.label: study.column(c.label, "weighted") for c in contenders},
        [s.name for s in study.scenarios[: study.random]],
        families={c.label: c.family for c in contenders},
        ours=ours,
    )


def _light_draws(study: Evidence) -> list[int]:
    """Random draws of light load: few enough requests that first come, first served has a stable queue."""
    queue = study.column(REFERENCE, "queue")
    return [
        place
        for place, scenario in enumerate(study.scenarios[: study.random])
        if scenario.load < LIGHT_LOAD and queue[place] == STABLE and not scenario.burst
    ]


def _means(study: Evidence, label: str) -> dict[str, float]:
    found = {}
    for figure in MEANS:
        values = [value for value in study.column(label, figure) if value is not None]
        if values:
            found[figure] = sum(values) / len(values)
    return found


def _cells(study: Evidence) -> dict[str, dict[str, Interval]]:
    places: dict[str, list[int]] = {}
    for place in range(study.random, len(study.scenarios)):
        places.setdefault(study.scenarios[place].name, []).append(place)
    return {
        name: {label: _interval(study.column(label, "weighted", where)) for label in study.labels}
        for name, where in places.items()
    }


def _interval(values: Sequence[float]) -> Interval:
    """Student's t over seeds: a bootstrap over five of them would be too narrow."""
    from slosched.core.metrics import Spread

    spread = Spread.of(values, bounds=(0.0, 1.0))
    return Interval(mean=spread.mean, low=spread.low, high=spread.high)


def _counts(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


FEWEST_DRAWS = 6
"""With fewer scenarios nobody is called ahead: five alike come by chance once in sixteen times."""


def headline(summary: Summary) -> list[str]:
    """What the study says in sentences: one for each league that we are in."""
    found = []
    for title, standings in summary.leagues.items():
        if standings.ours is None or len(standings.standings) < 2:
            continue
        us = standings.of(standings.ours)
        best = next(s for s in standings.standings if s.policy != us.policy)
        duel = standings.duels[best.policy]
        verdict = "ahead of" if duel.low > 0 else "behind" if duel.high < 0 else "level with"
        few = len(standings.draws) < FEWEST_DRAWS
        kept = f"{100 * us.attainment.mean:.1f} % of SLOs by weight"
        gain = f"{100 * duel.mean:+.1f} points ({100 * duel.low:+.1f} to {100 * duel.high:+.1f})"
        found.append(
            f"Over {len(standings.draws)} random scenarios{' (too few for a verdict)' if few else ''} "
            f"{us.policy} keeps {kept}, {'beside' if few else verdict} the best rival on average, "
            f"{best.policy}, by {gain}, among policies that {_verb(title)}."
        )
        found.append(
            f"Against the best rival of each scenario, chosen after the fact: ahead in "
            f"{100 * us.ahead:.0f} %, level in {100 * us.level:.0f} %, behind in {100 * us.behind:.0f} %; "
            f"regret {100 * us.regret_mean:.1f} points on average, at worst "
            f"{100 * us.regret_worst:.1f} ({us.worst_draw}, to {us.worst_rival})."
        )
    return found


def _verb(title: str) -> str:
    return {"serves everybody": "serve everybody", "may refuse": "may refuse"}[title]
