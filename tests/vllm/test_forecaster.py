"""Where the adapter's forecasts come from, and what happens when a ranker fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.arrays import Floats
from slosched.core.errors import InputError
from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config, load_config
from slosched.integrations.vllm.forecaster import PATIENCE, Forecaster
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.probe_forecasts import foretold
from slosched.integrations.vllm.slo_fields import read_claim
from slosched.integrations.vllm.state import Learned
from slosched.predictors import Prompt, load_predictor
from slosched.predictors.answers import Answers
from slosched.predictors.ranker import train_ranker

from .conftest import fake_request

PLAIN = read_claim(None, Config())
PRESET = "h100-llama-3.1-8b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranker that has learned that ninety lines are longer than one."""
    texts = [f"Write {many} on {i}." for i in range(60) for many in ("one line", "ninety lines")]
    lengths = [(10, 80)[i % 2] + i % 3 for i in range(120)]
    return train_ranker(Answers.single(texts, lengths)).save(tmp_path_factory.mktemp("ranker"))


def asked(text: str, request_id: str = "a", **fields: Any) -> Any:
    return fake_request(request_id, prompt=text, prompt_token_ids=[1, 2], **fields)


def forecaster(folder: Path, **settings: object) -> tuple[Forecaster, Stats]:
    stats = Stats()
    # A busy machine may make a ranker slow: only who tests that limits it.
    config = Config.model_validate({"forecast": {"ranker": folder, "limit_ms": 60_000, **settings}})
    return Forecaster(config, Learned(PRESET), stats), stats


def test_a_ranker_tells_requests_apart_and_max_tokens_bounds_it(folder: Path) -> None:
    made, stats = forecaster(folder, trust=0.9)
    short = made.of(PLAIN, asked("Write one line on 7."))
    long = made.of(PLAIN, asked("Write ninety lines on 7."))
    assert 3 * short.mean_tokens < long.mean_tokens
    assert made.of(PLAIN, asked("Write ninety lines on 7.", max_tokens=20)).atoms[-1] == 20
    assert stats.forecasts == {"ranker": 3}
    assert 0 < stats.forecast_s["ranker"] < 1
    assert not stats.fallbacks


def test_a_clients_hint_comes_first_unless_it_is_not_trusted(folder: Path) -> None:
    claim = read_claim({"predicted_output_tokens": 33}, Config())
    request = asked("Write ninety lines on 7.")
    assert forecaster(folder)[0].of(claim, request).quantile_tokens(0.5) == pytest.approx(33, rel=0.25)
    assert forecaster(folder, client_hint=False, trust=0.9)[0].of(claim, request).quantile_tokens(0.5) > 60


class Broken:
    """A predictor that raises, or dawdles."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.calls = seconds, 0

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        self.calls += 1
        if self.seconds is None:
            raise ValueError("broken")
        time.sleep(self.seconds)
        return np.full((len(prompts), 8), 5.0)


@pytest.mark.parametrize(("seconds", "reason"), [(None, "ranker"), (0.03, "slow_ranker")])
def test_a_ranker_that_fails_costs_only_its_forecast(
    folder: Path, seconds: float | None, reason: str
) -> None:
    """The request keeps its class's; failures are counted; after some in a row it is not asked again."""
    made, stats = forecaster(folder, limit_ms=10)
    stats.forecasts["ranker"] = 1  # the first, which may take longer
    broken = Broken(seconds)
    made._ranker = broken
    of_class = Forecaster(Config(), Learned(PRESET), Stats()).of(PLAIN, asked("Hello"))
    for _ in range(PATIENCE + 5):
        assert made.of(PLAIN, asked("Hello")) == of_class
    assert broken.calls == PATIENCE
    assert stats.fallbacks[reason] == PATIENCE


def test_a_ranker_is_corrected_by_what_comes(folder: Path) -> None:
    """The served model answers ten times as long as the training data: forecasts follow."""
    made, _ = forecaster(folder, trust=0.9)
    for i in range(60):
        request = asked("Write ninety lines on 7.", f"r{i}", max_tokens=5000)
        made.of(PLAIN, request)
        made.learn(f"r{i}", PLAIN.slo_class, 800 + i, prompt_tokens=5, cut=False)
    assert 700 < made.of(PLAIN, asked("Write ninety lines on 7.", max_tokens=5000)).mean_tokens < 1000
    assert len(made._asked) == 1  # what has finished is forgotten


def test_a_ranker_from_another_world_is_ignored_within_100_answers(folder: Path) -> None:
    """Long where it says short: in the end the forecast is the class's history, whatever the prompt."""
    made, _ = forecaster(folder)
    rng = np.random.default_rng(0)
    for i in range(100):
        many = ("one line", "ninety lines")[i % 2]
        made.of(PLAIN, asked(f"Write {many} on {i}.", f"r{i}", max_tokens=5000))
        tokens = int(rng.lognormal(5.0 - 0.7 * (i % 2), 0.5))
        made.learn(f"r{i}", PLAIN.slo_class, tokens, prompt_tokens=5, cut=False)
    assert made.weights(PLAIN.slo_class)["ranker"] < 0.05
    short, long = (
        made.of(PLAIN, asked(f"Write {many} on 7.", many, max_tokens=5000))
        for many in ("one line", "ninety lines")
    )
    assert short.mean_tokens == pytest.approx(long.mean_tokens, rel=0.05)


def test_hints_that_lie_are_unlearned(folder: Path) -> None:
    made, _ = forecaster(folder)
    claim = read_claim({"predicted_output_tokens": 5000}, Config())
    for i in range(100):
        made.of(claim, asked("Write one line on 7.", f"r{i}", max_tokens=9000))
        made.learn(f"r{i}", claim.slo_class, 10 + i % 3, prompt_tokens=5, cut=False)
    assert made.of(claim, asked("Write one line on 7.", max_tokens=9000)).mean_tokens < 15


def test_a_programs_past_turns_tell_of_its_next() -> None:
    """Two programs in one class, one of short answers and one of long ones; a third is not known yet."""
    made = Forecaster(Config(), Learned(PRESET), Stats())
    claims = [replace(PLAIN, program=i) for i in range(3)]
    rng = np.random.default_rng(0)
    for i in range(120):
        name = f"r{i}"
        made.of(claims[i % 2], asked("Go on.", name, max_tokens=9000))
        tokens = int((40, 1500)[i % 2] * rng.lognormal(0.0, 0.3))
        made.learn(name, PLAIN.slo_class, tokens, prompt_tokens=5, cut=False)
    short, long, new = (made.of(c, asked("Go on.", "x", max_tokens=9000)).mean_tokens for c in claims)
    assert short < 100
    assert long > 1000
    assert short < new < long


class Slow:
    """A ranker with a quick one inside, as one with an encoder; counts the threads that asked it."""

    def __init__(self, quick: Any) -> None:
        self.quick, self.threads, self.fails = quick, set[int](), False
        self.said: Any = np.full(8, 4000.0)

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        self.threads.add(threading.get_ident())
        if self.fails:
            raise ValueError("no such vector")
        return np.array([self.said] * len(prompts))


def test_a_slow_ranker_is_asked_elsewhere_and_its_word_taken_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    """The quick one's forecast stands until then; once a probe has told more the word comes too late."""
    slow = Slow(load_predictor(folder))
    monkeypatch.setattr("slosched.integrations.vllm.forecaster._load", lambda config: (slow, "ranker"))
    config = Config.model_validate({"forecast": {"trust": 0.9}})
    ledger = Ledger(config, clock, Learned(PRESET), Stats())
    rows = [ledger.row(asked("Write one line on 7.", name, max_tokens=5000)) for name in "ab"]
    first = ledger.table.atoms[rows].copy()
    assert first.max() < 1000
    ledger.forecaster.probed(["b"])
    until = time.monotonic() + 120
    while ledger.table.atoms[rows[0]].max() < 1000 and time.monotonic() < until:
        time.sleep(0.002)
        ledger.take_up()
    assert ledger.table.atoms[rows[0]].mean() > 1000
    assert (ledger.table.atoms[rows[1]] == first[1]).all()
    assert threading.get_ident() not in slow.threads


@pytest.mark.parametrize(
    "said",
    [None, [np.nan] * 8, [-5.0] * 8, [0.5] * 8, [9.0, *[3.0] * 7], [5.0] * 3, [np.inf] * 8],
    ids=["raises", "nan", "negative", "below 1", "descending", "short", "infinite"],
)
def test_a_slow_ranker_that_fails_leaves_the_quick_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[float] | None
) -> None:
    """It raises, or says what is no forecast: that is counted, and no request is lost."""
    slow, stats = Slow(load_predictor(folder)), Stats()
    slow.fails, slow.said = said is None, said
    monkeypatch.setattr("slosched.integrations.vllm.forecaster._load", lambda config: (slow, "ranker"))
    made = Forecaster(Config.model_validate({"forecast": {"trust": 0.9}}), Learned(PRESET), stats)
    for i in range(PATIENCE):
        made.of(PLAIN, asked("Write one line on 7.", f"r{i}"))
        until = time.monotonic() + 120
        while stats.fallbacks.get("ranker", 0) <= i and time.monotonic() < until:
            time.sleep(0.002)
            assert not list(made.news())
    assert made._later is None
    short, long = (made.of(PLAIN, asked(f"Write {m} on 7.", m)) for m in ("one line", "ninety lines"))
    assert 2 * short.mean_tokens < long.mean_tokens


def test_tokens_are_turned_back_into_text(folder: Path, tmp_path: Path) -> None:
    """As the engine has them: by the tokenizer of the model it serves."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {w: i for i, w in enumerate(("<unk>", "Write", "one", "ninety", "line", "lines", "on", "7", "."))}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path)
    made, stats = forecaster(folder, limit_ms=1000, trust=0.9)
    model = SimpleNamespace(tokenizer=str(tmp_path))
    made.reads(SimpleNamespace(vllm_config=SimpleNamespace(model_config=model)))
    short, long = (
        made.of(PLAIN, fake_request("a", prompt=None, prompt_token_ids=tokenizer(text)["input_ids"]))
        for text in ("Write one line on 7 .", "Write ninety lines on 7 .")
    )
    assert 3 * short.mean_tokens < long.mean_tokens
    assert not stats.fallbacks


def test_no_text_and_no_tokenizer_falls_back(folder: Path) -> None:
    """A request of tokens, where the model's tokenizer is not at hand; counted at the start already."""
    made, stats = forecaster(folder)
    made.reads(SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace(tokenizer="none/x"))))
    request = fake_request("a", prompt=None, prompt_token_ids=[1, 2, 3])
    assert made.of(PLAIN, request) == Forecaster(Config(), Learned(PRESET), Stats()).of(PLAIN, request)
    assert stats.fallbacks == {"ranker": 2}


def test_the_configuration_names_it(folder: Path, tmp_path: Path) -> None:
    """class-history by name, a folder for a ranker; a wrong folder is refused at the start."""
    path = tmp_path / "c.yaml"
    path.write_text("forecast: class-history\n")
    assert load_config(path).forecast.ranker is None
    path.write_text(f"forecast: {{ranker: {folder}, probe: p}}\n")
    assert load_config(path).forecast.ranker == folder
    path.write_text("forecast: {oracle: yes}\n")
    with pytest.raises(InputError, match="known here are ranker, probe, trust, client_hint, limit_ms"):
        load_config(path)
    with pytest.raises(InputError, match="predictor must be a folder"):
        forecaster(tmp_path / "none")


def test_the_prior_ranker_is_named_and_never_moves_the_level() -> None:
    """Its order counts once it has earned it; the class's history gives the lengths."""
    made, stats = forecaster(Path("prior"))
    for i in range(40):
        made.of(PLAIN, asked("Hello", f"r{i}", max_tokens=9000))
        made.learn(f"r{i}", PLAIN.slo_class, 3000 + i, prompt_tokens=5, cut=False)
    short, long = (
        made.of(PLAIN, asked(text, text, max_tokens=9000)).mean_tokens
        for text in ("What is 2 + 2?", "Write a detailed story about a dragon and a knight.")
    )
    assert 2500 < short <= long < 3500
    assert stats.forecasts == {"prior": 42}


def test_the_ledger_learns_cut_answers_as_such_and_knows_who_runs(clock: VirtualClock) -> None:
    """Stopped: whole; length or abort: cut off; under way: known by the tokens so far."""
    learned = Learned("h100-llama-3.1-8b")
    ledger = Ledger(Config(), clock, learned, Stats())
    for i, status in enumerate(("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_ABORTED")):
        request: Any = fake_request(f"r{i}", output=10 + i)
        ledger.row(request)
        request.status = SimpleNamespace(name=status)
        ledger.finish(f"r{i}", 1.0)
    assert learned.lengths.as_dict() == {"default": [[0, 10, 0], [0, 11, 1], [0, 12, 1]]}
    row = ledger.row(fake_request("running"))
    ledger.table.generated_tokens[row] = 44
    assert list(learned.lengths.running()) == [("default", 10, 44)]


def answered(ledger: Ledger, name: str, tokens: int) -> int:
    """A request that comes, is answered and leaves; returns the row it had."""
    request: Any = fake_request(name, output=tokens, max_tokens=5000)
    row = ledger.row(request)
    request.status = SimpleNamespace(name="FINISHED_STOPPED")
    ledger.finish(name, 1.0)
    return row


def test_the_first_answers_renew_the_forecasts_of_all_that_are_there(clock: VirtualClock) -> None:
    """Waiting and running ones, after the 1st, 2nd, 4th answer and so on; a limit bounds them. What a probe
    has told stays.
    """
    ledger = Ledger(Config(), clock, Learned(PRESET), Stats())
    names = ("waits", "runs", "limited", "probed")
    rows = [ledger.row(fake_request(n, max_tokens=20 if n == "limited" else 5000)) for n in names]
    ledger.table.generated_tokens[rows[1]] = 3
    output = SimpleNamespace(slosched_atoms={"probed": [700.0] * 8})
    foretold(SimpleNamespace(ledger=ledger, stats=Stats()), output)
    first = ledger.table.atoms[rows].copy()
    assert first[0].mean() > 200
    means = []
    for i in range(64):
        answered(ledger, f"r{i}", 30 + i % 5)
        ledger.take_up()
        means.append(float(ledger.table.atoms[rows[0]].mean()))
    # Between these nothing is made anew.
    assert [1 + i for i in range(1, 64) if means[i] != means[i - 1]] == [2, 4, 8, 16, 32, 64]
    assert means[0] < first[0].mean()
    now = ledger.table.atoms[rows]
    assert 28 < now[:2].mean() < 40
    assert (now[2] == np.minimum(now[0], 20)).all()
    assert (now[3] == 700).all()


def test_an_answer_that_ended_is_left_with_the_forecast_it_would_get_now(clock: VirtualClock) -> None:
    """So a policy that corrects forecasts does not correct once more what the history has learned."""
    stats = Stats()
    ledger = Ledger(Config(), clock, Learned(PRESET), stats)
    early: Any = fake_request("early", output=33, max_tokens=5000)
    row = ledger.row(early)
    first = float(ledger.table.atoms[row].mean())
    for i in range(30):
        answered(ledger, f"r{i}", 30 + i % 5)
    expected = ledger.forecaster.newest("early")
    assert expected is not None
    assert expected.mean() < 40 < 200 < first
    early.status = SimpleNamespace(name="FINISHED_STOPPED")
    ledger.finish("early", 1.0)
    assert (ledger.table.atoms[row] == expected).all()
    assert ledger.forecaster.newest("early") is None


@pytest.mark.parametrize("named", ["own", "prior"])
def test_a_ranker_has_no_say_before_it_has_earned_it(folder: Path, named: str) -> None:
    """The forecast is the class's history to the last digit, for the first request and long after if the
    ranker knows nothing of this world.
    """
    made, _ = forecaster(Path("prior") if named == "prior" else folder)
    plain = Forecaster(Config(), Learned(PRESET), Stats())
    rng = np.random.default_rng(0)
    for i in range(300):
        request = asked(f"Write {('one line', 'ninety lines')[i % 2]} on {i}.", f"r{i}", max_tokens=5000)
        assert made.of(PLAIN, request) == plain.of(PLAIN, request)
        tokens = int(rng.lognormal(5.0, 0.5))
        for each in (made, plain):
            each.learn(f"r{i}", PLAIN.slo_class, tokens, prompt_tokens=5, cut=False)


def test_what_a_ranker_has_earned_survives_a_restart_and_is_not_another_rankers(
    folder: Path, tmp_path: Path
) -> None:
    """Weights and corrections are in the state file; a ranker of another content has to earn its own."""
    config = Config.model_validate({"forecast": {"ranker": folder}})
    learned = Learned(PRESET)
    made = Forecaster(config, learned, Stats())
    for i in range(120):
        made.of(
            PLAIN, asked(f"Write {('one line', 'ninety lines')[i % 2]} on {i}.", f"r{i}", max_tokens=5000)
        )
        made.learn(f"r{i}", PLAIN.slo_class, (100, 800)[i % 2] + i % 7, prompt_tokens=5, cut=False)
    asks = [asked(f"Write {many} on 7.", many, max_tokens=5000) for many in ("one line", "ninety lines")]
    before = [made.of(PLAIN, a).mean_tokens for a in asks]
    assert before[1] > 3 * before[0]
    path = tmp_path / "state.json"
    learned.save(path)
    again = Learned(PRESET)
    other = Forecaster(config, again, Stats())
    again.load(path)
    assert [other.of(PLAIN, a).mean_tokens for a in asks] == pytest.approx(before, rel=0.02)
    texts = [f"Say {many} of {i}." for i in range(60) for many in ("one word", "ninety words")]
    lengths = [(10, 80)[i % 2] + i % 3 for i in range(120)]
    train_ranker(Answers.single(texts, lengths)).save(tmp_path / "another")
    changed = Learned(PRESET)
    new = Forecaster(Config.model_validate({"forecast": {"ranker": tmp_path / "another"}}), changed, Stats())
    changed.load(path)
    assert new.weights(PLAIN.slo_class)["history"] == 1
    assert new.of(PLAIN, asks[0]) == new.of(PLAIN, asks[1])
