"""How many deliberate faults the tests notice: a mutation run over what our claims rest on.

Cosmic Ray makes the mutants: another comparison, another sign, a number off by one, a condition turned round.
Each target below is a module with the tests that must notice its faults. A random choice of its mutants is
tried, one at a time, in a copy of the working tree. Survivors are printed with their change.

    make mutants                                            # about 15 minutes on a free core
    python benchmarks/mutants.py --only metrics             # a part of it; the others stay as they were

Before, nine faults of meaning are tried that once survived: the worst rival called the best, and others.

A mutant counts as killed if the tests of its target fail, or do not end within five times their usual time.
Mutants that cannot change behaviour (a tolerance, a message) are not told apart: they count as survivors.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import ortools.sat.python.cp_model  # noqa: TID253 (this is a script)
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special
from common import RESULTS, ROOT, environment, write_json
from rich.progress import Progress

from slosched.lab.cells import provenance

FORK = multiprocessing.get_context("fork")
LOADED = (numba, ortools.sat.python.cp_model, scipy.optimize, scipy.sparse, scipy.special)
"""What takes long to import and is no part of the package: loaded once, before any fork."""

SWAPS = {
    "Add": ("Sub",), "Sub": ("Add",), "Mul": ("Div", "Add"), "Div": ("Mul",), "FloorDiv": ("Mul",),
    "Mod": ("Mul",), "Pow": ("Mul",),
}  # fmt: skip
COMPARISONS = {
    "Lt": ("LtE", "Gt"), "LtE": ("Lt", "Gt"), "Gt": ("GtE", "Lt"), "GtE": ("Gt", "Lt"), "Eq": ("NotEq",),
    "NotEq": ("Eq",), "Is": ("IsNot",), "IsNot": ("Is",),
}  # fmt: skip
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{a}_{b}" for a, others in SWAPS.items() for b in others),
    *(f"core/ReplaceComparisonOperator_{a}_{b}" for a, others in COMPARISONS.items() for b in others),
    "core/AddNot", "core/NumberReplacer", "core/ReplaceAndWithOr", "core/ReplaceOrWithAnd",
    "core/ReplaceFalseWithTrue", "core/ReplaceTrueWithFalse", "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak", "core/ReplaceUnaryOperator_Delete_Not",
    "core/ReplaceUnaryOperator_USub_UAdd", "core/ReplaceUnaryOperator_Delete_Invert",
)  # fmt: skip
SEED = 20
"""Of the sample that is reported: nobody looked at it while tests were written."""
PATIENCE, LEAST_PATIENCE_S = 5.0, 60.0
"""A mutant may take so many times as long as the tests without it, and at least so many seconds."""


@dataclass(frozen=True, slots=True)
class Target:
    """A module, functions or classes in it (all if none are named), the tests to run, and mutants to try."""

    name: str
    module: str
    tests: str
    each: int
    within: tuple[str, ...] = ()


CPSAT_TESTS = "tests/solvers/test_exact.py -k 'cpsat or rounding_makes'"
TARGETS = (
    Target("outcomes", "core/outcome.py", "tests/core/test_outcome.py", 3),
    Target("SLO", "core/request.py", "tests/core/test_nouns.py", 3, ("Slo",)),
    Target("SLO fields", "integrations/vllm/slo_fields.py", "tests/vllm/test_fields.py", 5),
    Target("SLO rules", "workloads/slos.py", "tests/workloads/test_slos.py", 4),
    Target("headers", "integrations/vllm/middleware.py", "tests/vllm/test_middleware.py", 4),
    Target("metrics", "core/metrics.py", "tests/report/test_metrics.py tests/simulator/test_sessions.py -k "
           "'not turns_follow and not slow'", 8),
    Target("figures", "lab/figures.py", "tests/lab/test_figures.py", 6),
    Target("objectives", "core/result.py", "tests/solvers/test_static.py -k 'tolerance or gap or trivial or "
           "relative'", 3, ("Score",)),
    Target("continuous bounds", "solvers/cpsat_continuous.py", "tests/solvers/test_exact_continuous.py", 4,
           ("_Queue", "_solve", "solve_continuous_fixed")),
    Target("guards", "integrations/vllm/guarded_policy.py", "tests/vllm/test_guards.py", 3,
           ("open", "decide", "_fail", "_collect", "_keys")),
    Target("admission", "policies/hopeless.py", "tests/policies/test_options.py -k 'not agentic'", 5),
    Target("sessions", "core/workload.py", "tests/simulator/test_sessions.py -k 'not turns_follow and not "
           "slow'", 3, ("previous", "turn", "open_loop", "rows")),
    Target("bounds", "lab/bound.py", "tests/evidence/test_bound.py -k 'not no_policy'", 8,
           ("attainment_bound", "spans_of", "_jobs", "_most_alive", "_shareable", "_Windows")),
    Target("statistics", "lab/statistics.py", "tests/lab/test_statistics.py", 8),
    Target("calibration", "predictors/calibration.py", "tests/predictors/test_ranker.py "
           "tests/predictors/test_history.py -k 'cut or calibration or quantiles'", 3,
           ("censored_quantiles", "_spread", "interval")),
    Target("cpsat bounds", "solvers/static/cpsat.py", CPSAT_TESTS, 5,
           ("_Rounded", "attainment", "latency", "dinkelbach", "_referee")),
    Target("evaluation", "solvers/static/reference.py", "tests/solvers/test_static.py -k 'agree or limits or "
           "trivial or bad_problems'", 3, ("value", "evaluate", "check_plan")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of meaning, written by hand: what one line says, and what it says instead."""

    name: str
    module: str
    before: str
    after: str
    tests: str


FAULTS = (
    Fault("the worst rival is called the best", "lab/statistics.py", "best = np.argmax(stacked, axis=0)\n"
          "    return stacked.max(axis=0)",
          "best = np.argmin(stacked, axis=0)\n    return stacked.min(axis=0)",
          "tests/lab/test_statistics.py"),
    Fault("no draw ever counts as lost", "lab/statistics.py", "behind=share(advantage < -CLOSE)",
          "behind=share(advantage < -9)", "tests/lab/test_statistics.py"),
    Fault("CP-SAT's bound is one too low", "solvers/static/cpsat.py", "math.floor(most + 1e-6) / model",
          "(math.floor(most + 1e-6) - 1) / model", CPSAT_TESTS),
    Fault("CP-SAT's executions are rounded up", "solvers/static/cpsat.py",
          "runs[i][size] = math.floor(", "runs[i][size] = math.ceil(", CPSAT_TESTS),
    Fault("refusals never count", "core/metrics.py", "int(out.rejected.sum())", "0",
          "tests/report/test_metrics.py"),
    Fault("refusals never count in studies", "lab/figures.py", "out.rejected | np.isnan(out.arrival_s)",
          "np.isnan(out.arrival_s)", "tests/lab/test_figures.py"),
    Fault("LTR's idle counter is never reset", "policies/rivals/ltr.py", "idle[running] = 0.0", "pass",
          "tests/policies/test_oracles.py -k ltr"),
    Fault("answers cut off count as inside their interval", "predictors/calibration.py",
          "known = ~cut | (y > high)", "known = np.ones_like(cut)",
          "tests/predictors/test_ranker.py -k 'cut'"),
    Fault("a body of any size is read", "integrations/vllm/middleware.py", "if size > MAX_BODY:", "if False:",
          "tests/vllm/test_middleware.py"),
)  # fmt: skip
"""Faults that once survived the tests. All are tried at every run."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change to one module."""

    target: str
    module: str
    line: int
    operator: str
    occurrence: int

    def source(self, original: str) -> str:
        """The module with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return str(mutate_code(original, get_operator(self.operator)(), self.occurrence))

    def change(self, original: str) -> str:
        """The changed line, before and after."""
        before, after = (
            text.splitlines()[self.line - 1].strip() for text in (original, self.source(original))
        )
        return f"{before}  ->  {after}"


def lines_of(source: str, within: tuple[str, ...]) -> set[int]:
    """Lines of the functions and classes named, or of all, without decorators."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    found: set[int] = set()
    for node in nodes:
        if not within or node.name in within:
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found - {line.lineno for node in nodes for line in node.decorator_list}


def mutants(target: Target) -> Iterator[Mutant]:
    """All mutants of a target."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    path = Path("slosched") / target.module
    source = (ROOT / path).read_text()
    inside, lines = lines_of(source, target.within), source.splitlines(keepends=True)
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator: Any = get_operator(name)()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, column) in enumerate(places):
            # The star before keyword-only parameters is no operator, whatever Cosmic Ray thinks of it.
            star = lines[line - 1][column:].startswith(("*,", "*\n"))
            if line in inside and not star:
                yield Mutant(target.name, str(path), line, name, occurrence)


def chosen(target: Target, each: int | None, seed: int) -> list[Mutant]:
    """A random choice, at most one mutant a line while there are lines left."""
    rng = np.random.default_rng(seed)
    every = list(mutants(target))
    order = [every[i] for i in rng.permutation(len(every))]
    seen: set[int] = set()
    first = [m for m in order if not (m.line in seen or seen.add(m.line))]  # type: ignore[func-returns-value]
    rest = [m for m in order if m not in first]
    return (first + rest)[: each or target.each]


def survivors_of(tree: Path, faults: Sequence[Fault]) -> list[str]:
    """Names of the faults that their tests do not notice."""
    found = []
    for fault in faults:
        path = tree / "slosched" / fault.module
        original = path.read_text()
        if original.count(fault.before) != 1:
            raise SystemExit(f"{fault.module} must hold {fault.before!r} once, for the fault: {fault.name}.")
        path.write_text(original.replace(fault.before, fault.after))
        if passes(tree, fault.tests, None)[0]:
            found.append(fault.name)
        path.write_text(original)
    return found


def copy_tree(tree: Path) -> None:
    """The files of the working tree that git knows."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.split("\n"):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def passes(tree: Path, tests: str, timeout_s: float | None) -> tuple[bool, float]:
    """Whether the tests pass in a tree, and how long they took."""
    began = time.perf_counter()
    child = FORK.Process(target=_test, args=(tree, shlex.split(tests)))
    child.start()
    child.join(timeout_s)
    if child.is_alive():
        child.kill()
        child.join()
    if child.exitcode not in (0, 1, 2, -signal.SIGKILL):
        raise SystemExit(f"pytest cannot run {tests}: exit code {child.exitcode}.")
    return child.exitcode == 0, time.perf_counter() - began


def _test(tree: Path, tests: list[str]) -> None:
    """Run tests on the package in a tree; a fork of this process, with all but the package loaded."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(tree)
    for name in [name for name in sys.modules if name.partition(".")[0] == "slosched"]:
        del sys.modules[name]
    os.environ |= {"PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / ".numba")}
    sys.path.insert(0, str(tree))
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests])))


def earlier(path: Path, seed: int, targets: Sequence[Target]) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """Rows of the targets that are not tried now, from a file of the same sample, and what the faults did."""
    if not path.exists():
        return [], {}
    old = json.loads(path.read_text())
    now = {target.name for target in targets}
    rows = [{"commit": old["measured"]["commit"]} | row for row in old["rows"] if row["target"] not in now]
    return (rows, old["faults"]) if old["seed"] == seed else ([], {})


def write(
    path: Path, seed: int, kept: list[dict[str, Any]], rows: list[dict[str, Any]], faults: dict[str, bool]
) -> None:
    """What is known so far, with the processor seconds it took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    about = provenance()
    rows = kept + [row | {"commit": about["commit"]} for row in rows]
    content = {
        "seed": seed, "mutants": len(rows), "killed": sum(row["killed"] for row in rows), "rows": rows,
        "faults": faults, "processor_s": round(used.ru_utime + used.ru_stime),
    }  # fmt: skip
    write_json(path, {"environment": environment("cosmic-ray")} | content)


def main() -> None:
    """Try all mutants and print the score and the survivors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=[t.name for t in TARGETS])
    parser.add_argument("--each", type=int, help="mutants of each target, in place of the usual number")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=RESULTS / "mutants.json")
    options = parser.parse_args()
    targets = [t for t in TARGETS if not options.only or t.name in options.only]
    picked = {t.name: chosen(t, options.each, options.seed) for t in targets}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(auto_refresh=False) as bar:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        kept, faults = earlier(options.out, options.seed, targets) if options.only else ([], {})
        if not options.only:
            missed = survivors_of(tree, FAULTS)
            faults = {fault.name: fault.name not in missed for fault in FAULTS}
        task = bar.add_task("mutants", total=sum(map(len, picked.values())))
        for target in targets:
            good, usual_s = passes(tree, target.tests, None)
            if not good:
                raise SystemExit(f"the tests of {target.name} must pass without a mutant: {target.tests}")
            for mutant in picked[target.name]:
                path = tree / mutant.module
                original = path.read_text()
                path.write_text(mutant.source(original))
                alive, _ = passes(tree, target.tests, max(LEAST_PATIENCE_S, PATIENCE * usual_s))
                path.write_text(original)
                change = mutant.change(original)
                rows.append(asdict(mutant) | {"change": change, "killed": not alive})
                bar.update(task, advance=1, refresh=True)
                write(options.out, options.seed, kept, rows, faults)
                if alive:
                    bar.console.print(f"survived: {mutant.module}:{mutant.line}: {change}", markup=False)
    killed = sum(row["killed"] for row in rows)
    for target in targets:
        own = [row for row in rows if row["target"] == target.name]
        print(f"{target.name:18} {sum(row['killed'] for row in own):3} of {len(own):3} killed")
    for name, noticed in faults.items():
        print(f"{'killed' if noticed else 'SURVIVED'}: {name}")
    print(f"{'all':18} {killed:3} of {len(rows):3} killed ({100 * killed / max(1, len(rows)):.0f} %)")


if __name__ == "__main__":
    main()
