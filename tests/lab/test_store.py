"""Results are kept by all they depend on: changed code or another scenario never gets an old result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slosched.core.errors import InputError
from slosched.lab import cells as cells_module
from slosched.lab import digests
from slosched.lab.cells import Cell, Contender, adopt, run_cells
from slosched.lab.digests import closure, code_digest, policy_digest
from slosched.lab.scenarios import Scenario, Traffic
from slosched.lab.store import Record, Store
from slosched.policies import policy

SMALL = Scenario(
    name="small",
    classes=(Traffic(name="a", family="conversation", ttft_x=(5.0, 5.0)),),
    requests=60,
    load=1.5,
)


def record(value: float, **key: object) -> Record:
    return Record(key=dict(key), result={"weighted": value}, provenance={"commit": "abc"})


def test_results_survive_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    store = Store(path)
    store.add(record(0.5, a=1))
    store.add(record(0.7, a=2))
    text = path.read_text()
    path.write_text(text[:-20])
    again = Store(path)
    assert {"a": 1} in again
    assert {"a": 2} not in again
    assert len(again.complaints) == 1
    again.add(record(0.8, a=2))
    last = Store(path)
    assert last[{"a": 2}].result == {"weighted": 0.8}
    assert len(last) == 2


def test_a_result_that_was_touched_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    Store(path).add(record(0.5, a=1))
    path.write_text(path.read_text().replace("0.5", "0.9"))
    again = Store(path)
    assert {"a": 1} not in again
    assert "row 1" in again.complaints[0]


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    both = [Cell(scenario=SMALL, contender=Contender.parse(p)) for p in ("fcfs", "edf+d@512")]
    store = Store(tmp_path / "runs.jsonl")
    first = run_cells(both[:1], store)
    seen: list[tuple[int, int]] = []
    again = run_cells([*both, both[0]], Store(tmp_path / "runs.jsonl"), progress=lambda *x: seen.append(x))
    assert seen[0] == (2, 3)
    assert seen[-1] == (3, 3)
    assert again[0].result == again[2].result == first[0].result
    assert again[1].result != again[0].result
    assert {"commit", "dirty", "machine", "python", "packages", "wall_s"} <= set(again[1].provenance)


def test_digits_do_not_depend_on_processes() -> None:
    some = [Cell(scenario=SMALL, contender=Contender.parse(p)) for p in ("fcfs", "paced-edf")]
    one, two = run_cells(some, Store(), jobs=1), run_cells(some, Store(), jobs=2)
    assert [r.result for r in one] == [r.result for r in two]
    assert [r.key for r in one] == [r.key for r in two]


def test_the_key_names_all_that_matters() -> None:
    key = Cell(scenario=SMALL, contender=Contender.parse("fcfs")).key()
    for other in (
        Cell(scenario=SMALL.model_copy(update={"seed": 1}), contender=Contender.parse("fcfs")),
        Cell(scenario=SMALL.model_copy(update={"load": 1.6}), contender=Contender.parse("fcfs")),
        Cell(scenario=SMALL.model_copy(update={"max_num_seqs": 64}), contender=Contender.parse("fcfs")),
        Cell(scenario=SMALL, contender=Contender.parse("edf")),
        Cell(scenario=SMALL, contender=Contender.parse("fcfs@512")),
        Cell(scenario=SMALL, contender=Contender.parse("fcfs, long_prefill_token_threshold=256")),
    ):
        assert other.key() != key
    assert Cell(scenario=SMALL, contender=Contender.parse("fcfs")).key() == key


def test_a_rival_does_not_depend_on_our_planner() -> None:
    assert "slosched.planner.planner" in closure("slosched.policies.slosched")
    for module in ("slosched.policies.rivals.qoserve", "slosched.policies.paced"):
        assert not {
            m for m in closure(module) if m.startswith("slosched.planner.p") and m != "slosched.planner.plan"
        }
        assert "slosched.planner.model" not in closure(module)
    assert "slosched.simulator.kernel" in closure(*cells_module.ENGINE_MODULES)
    assert "slosched.workloads.arrivals" in closure(*cells_module.ENGINE_MODULES)


def test_digest_changes_with_code_and_not_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "slosched"
    (root / "policies").mkdir(parents=True)
    own, base = root / "policies" / "mine.py", root / "helper.py"
    base.write_text("X = 1\n")
    (root / "other.py").write_text("Y = 1\n")
    own.write_text('"""Doc."""\nfrom slosched.helper import X\n\ndef f():\n    """Words."""\n    return X\n')
    monkeypatch.setattr(digests, "ROOT", root)

    def digest() -> str:
        for cached in (digests._imports, digests._source_digest, digests._text, digests._path):
            cached.cache_clear()
        return code_digest("slosched.policies.mine")

    try:
        first = digest()
        own.write_text("# A comment.\nfrom slosched.helper import X\n\n\ndef f():\n    return X\n")
        (root / "other.py").write_text("Y = 2\n")
        assert digest() == first
        base.write_text("X = 2\n")
        second = digest()
        assert second != first
        own.write_text("from slosched.helper import X\n\n\ndef f():\n    return X + 1\n")
        assert digest() not in (first, second)
    finally:
        monkeypatch.undo()
        for cached in (digests._imports, digests._source_digest, digests._text, digests._path):
            cached.cache_clear()


def test_a_policy_from_outside_counts_by_its_own_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_policy_of_a_test.py").write_text(
        "from slosched.policies.orders import Edf\n\n\nclass Mine(Edf):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_policy_of_a_test  # type: ignore[import-not-found]

    mine = policy_digest(my_policy_of_a_test.Mine())
    assert mine != policy_digest(policy("edf"))
    del sys.modules["my_policy_of_a_test"]


def test_a_policy_without_source_is_explained() -> None:
    with pytest.raises(InputError, match="whose source can be read"):
        code_digest("no_such_module_anywhere")


def test_store_keeps_provenance_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    Store(path).add(record(0.5, a=1))
    line = json.loads(path.read_text())
    assert line["provenance"] == {"commit": "abc"}
    assert Store(path).records()[0].provenance == {"commit": "abc"}


def test_results_of_other_code_are_adopted_only_if_a_sample_agrees() -> None:
    """Of three scenarios one is run again: if it agrees, the other two are taken over, and say so."""
    some = [
        Cell(scenario=SMALL.model_copy(update={"seed": seed}), contender=Contender.parse("fcfs"))
        for seed in range(3)
    ]
    true = run_cells(some, Store())
    for honest in (True, False):
        store = Store()
        for one in true:
            result = one.result if honest else one.result | {"weighted": 0.123}
            store.add(Record(key=one.key | {"code": "old"}, result=result, provenance=one.provenance))
        assert adopt(some, store, sample=1) == {"fcfs": (2 if honest else 0, 3)}
        assert some[0].key() in store
        assert (some[1].key() in store) == honest


def test_adopted_results_say_where_they_come_from() -> None:
    one = Cell(scenario=SMALL, contender=Contender.parse("fcfs"))
    two = Cell(scenario=SMALL.model_copy(update={"seed": 1}), contender=Contender.parse("fcfs"))
    store = Store()
    for record_now in run_cells([one, two], Store()):
        store.add(
            Record(
                key=record_now.key | {"code": "old"}, result=record_now.result, provenance={"commit": "abc"}
            )
        )
    adopt([one, two], store, sample=1)
    found = store[two.key()]
    assert found.provenance["adopted"]["code"] == "old"
    assert found.provenance["adopted"]["checked"] == "1 of 2"
    assert found.provenance["commit"] == "abc"
    assert "adopted" not in store[one.key()].provenance
