"""The configuration file is read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from slosched.core.errors import InputError
from slosched.integrations.vllm.config import VARIABLE, Config, MetricsConfig, load_config
from slosched.integrations.vllm.slo_fields import class_of

YAML = "policy: edf\ndefault_class: chat\nclasses:\n  chat: {ttft_ms: 500, tpot_ms: 50}\n"
TOML = 'policy = "edf"\ndefault_class = "chat"\n[classes.chat]\nttft_ms = 500\ntpot_ms = 50\n'


@pytest.mark.parametrize(("suffix", "text"), [("yaml", YAML), ("toml", TOML)])
def test_yaml_and_toml_say_the_same(tmp_path: Path, suffix: str, text: str) -> None:
    """Both give the same settings."""
    path = tmp_path / f"slosched.{suffix}"
    path.write_text(text)
    config = load_config(path)
    assert config.policy == "edf"
    assert class_of(config, "chat").ttft_ms == 500


@pytest.mark.parametrize(
    ("text", "field", "known"),
    [
        ("polcy: edf", "polcy", "policy"),
        ("classes: {chat: {ttft: 1}}", "classes.chat.ttft", "ttft_ms"),
        ("guards: {time_box: 1}", "guards.time_box", "time_box_us"),
        ("bounds: {max: 1}", "bounds.max", "max_weight"),
        ("metrics: {prot: 1}", "metrics.prot", "port"),
        ("thinking: {end: 5, begin: 4}", "thinking.begin", "end"),
        ("tenants: {gold: {weight: 1}}", "tenants.gold.weight", "max_weight"),
        ("admission: {chance: 1}", "admission.chance", "min_chance"),
        ("forecast: {rank: 1}", "forecast.rank", "ranker"),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_ones(
    tmp_path: Path, text: str, field: str, known: str
) -> None:
    """The message names the key and lists those of its section."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{field} is not a known setting.*{known}"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("classes: {chat: {ttft_ms: -5}}", "classes.chat.ttft_ms"),
        ("default_class: gold", "gold"),
        ("guards: {time_box_us: fast}", "guards.time_box_us"),
        ("- a list", "mapping"),
        ("a: [", "valid YAML"),
        ("policy: edf\npolicy: sjf\n", "'policy' is set twice"),
        ("classes: {chat: {ttft_ms: 5, ttft_ms: 6}}", "'ttft_ms' is set twice"),
        ("? [policy, seed]\n: edf\n", "found unhashable key"),
        ("classes: {chat: {ttft_ms: yes}}", "classes.chat: ttft_ms must be a number, got true"),
        ("seed: true", "seed must be a number, got true"),
        ("seed: -1", "seed: .*greater than or equal to 0, got -1"),
        ("policy:", "policy: .*string, got None"),
        ("default_class: gold", "^[^:]*: default_class must be one of the classes default, got 'gold'$"),
        ("state_file: /tmp", "state_file must name a file, got the folder '/tmp'"),
        ("metrics: {json_file: /}", "metrics.json_file must name a file, got the folder '/'"),
        ("state_file: $NOT_SET_ANYWHERE/s.json", "state_file must be a path whose variables are all set"),
        ('step_log: "a\\0b"', "step_log must be a path"),
        ("metrics: {address: '127.0.0.1:9400'}", "metrics.address: must be a host or an IP address, without"),
        ("a: " + "[" * 5000, "must not be nested so deep"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, text: str, named: str) -> None:
    """Wrong values and broken files stop the start with a reason."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        load_config(path)


def test_paths_as_shells_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's folder and variables are put in; ``prior`` and plain paths stay as they are."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STATE", "/var/lib")
    path = tmp_path / "c.yaml"
    path.write_text("state_file: ~/s.json\nstep_log: ${STATE}/steps.csv\nforecast: {ranker: prior}\n")
    config = load_config(path)
    assert config.state_file == Path("/home/me/s.json")
    assert config.step_log == Path("/var/lib/steps.csv")
    assert config.forecast.ranker == Path("prior")


def test_json_is_read_by_its_name(tmp_path: Path) -> None:
    """Tabs are allowed there; a key that stands twice is not; an ending in capitals is the same ending."""
    path = tmp_path / "c.JSON"
    path.write_text('{\n\t"policy": "edf",\n\t"classes": {"chat": {"ttft_ms": 5}}\n}')
    assert load_config(path).classes["chat"].ttft_ms == 5
    path.write_text('{"policy": "edf", "policy": "sjf"}')
    with pytest.raises(InputError, match="valid JSON: 'policy' is set twice"):
        load_config(path)
    path = tmp_path / "c.TOML"
    path.write_text('policy = "edf"\n')
    assert load_config(path).policy == "edf"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "metrics.my-pod.svc.", "0.0.0.0"])
def test_addresses_of_any_kind(address: str) -> None:
    """Names and both kinds of numbers."""
    assert MetricsConfig(address=address).address == address


def test_a_section_with_nothing_in_it_is_the_default(tmp_path: Path) -> None:
    """All of its lines may be comments; an anchor may be used in several places."""
    path = tmp_path / "c.yaml"
    path.write_text("guards:\n  # preempt: false\nclasses:\nmetrics:\n")
    assert load_config(path) == Config()
    path.write_text("classes:\n  chat:\n    # ttft_ms: 5\ntenants: {gold: }\n")
    assert load_config(path).classes["chat"].ttft_ms is None
    path.write_text("classes:\n  a: &a {ttft_ms: 5}\n  b: {<<: *a, tpot_ms: 7}\n  c: *a\n")
    classes = load_config(path).classes
    assert (classes["b"].ttft_ms, classes["b"].tpot_ms, classes["c"].ttft_ms) == (5, 7, 5)


def test_the_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable all is default; with a missing file the start is refused."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert load_config() == Config()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=VARIABLE):
        load_config()


@pytest.mark.parametrize("section", ["classes", "tenants"])
@pytest.mark.parametrize("name", ['""', '"\\ud800"', "x" * 129])
def test_a_name_that_no_client_can_say_is_refused(section: str, name: str, tmp_path: Path) -> None:
    """An empty one, half a character, a page of text."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{section}: {{{name}: {{}}}}\n")
    with pytest.raises(InputError, match=rf"{section}.*text of 1 to 128 characters"):
        load_config(path)
    path.write_text(f"{section}: {{{'x' * 128}: {{}}, \u00e9: {{}}}}\n", encoding="utf-8")
    load_config(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "policy: 2026-02-30"),
        ("c.yaml", "engine: 2026-01-01T25:00:00"),
        ("c.yaml", "policy: !!timestamp noon"),
        ("c.yaml", "seed: 0b_"),
        ("c.yaml", f"seed: {'9' * 5000}"),
        ("c.json", f'{{"seed": {"9" * 5000}}}'),
        ("c.toml", f"seed = {'9' * 5000}"),
    ],
)
def test_a_day_or_number_that_does_not_exist_is_refused(name: str, text: str, tmp_path: Path) -> None:
    """As a mistake in the file, not as an error of its reader."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match="days and numbers that exist"):
        load_config(path)


def test_a_file_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    """Before the engine starts."""
    with pytest.raises(ValueError, match="state_file must name a place that can be reached"):
        Config(state_file=tmp_path / ("a" * 300))


@pytest.mark.parametrize("other", ["x.json", "./x.json", "y/../x.json"])
def test_two_kinds_of_content_have_two_files(other: str) -> None:
    """Each would overwrite the other."""
    with pytest.raises(ValueError, match=r"metrics.json_file must name another file than state_file"):
        Config.model_validate({"state_file": "x.json", "metrics": {"json_file": other}})
