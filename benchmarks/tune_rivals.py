"""Every policy with its own best settings, ours included, by one budget, on tuning seeds of the population.

Each policy gets its defaults and up to five other settings. All run the same draws; the best mean wins.
Settings chosen here go into `benchmarks/evidence.yaml`, whose seeds are others.

    python benchmarks/tune_rivals.py --draws 24 --jobs 2      # about 2 hours; goes on where it stopped
    python benchmarks/tune_rivals.py --policy qoserve --draws 8
"""

from __future__ import annotations

import statistics
from pathlib import Path

from common import environment, study_options, write_json
from rich.progress import Progress

from slosched.lab.evidence import EvidenceConfig, run_evidence
from slosched.lab.population import FIRST_REPORTING_SEED
from slosched.lab.store import Store

GRID = {
    "slosched": ("", "@2048", "@512"),
    "edf+d": ("", "@2048", "@1024", "@512", "@256"),
    "priority": ("", "@2048", "@512", "@512, long_prefill_token_threshold=256"),
    "qoserve": (
        ":from_first=true", ":from_first=true,alpha_s_per_token=0.002", ":from_first=true,margin=1.05",
        ":from_first=true,pace_s=0.1", "",
    ),
    "slos-serve": ("", ":margin=1.1", ":whole_paces=true", ":most=128"),
    "slidingserve": (":from_first=true", ":from_first=true@2048", ""),
    "scorpio": ("", ":factor=1.0", ":whole_paces=true", ":factor=1.0@2048"),
    "jitserve": ("", ":batch=32", "@512"),
    "paced-edf": ("", "@2048", "@512", ":hold=true", ":share=0.8"),
    "paced-srpt": ("", "@2048"),
    "paced-wspt": ("", "@2048", "@512", ":hold=true", ":share=0.8", ":hopeless=refuse@2048"),
}  # fmt: skip
"""Settings tried by policy, as they are written on the command line after its name."""
FIRST_SEED = 5000
"""Tuning seeds that nobody looks at while developing."""


def main() -> None:
    """Run all settings, and say which are best."""
    parser = study_options(__doc__, "tune_rivals.json", draws=24, seed=FIRST_SEED)
    parser.add_argument("--policy", action="append", choices=list(GRID), help="policy; several")
    parser.add_argument("--store", type=Path, default=Path("out/tuning/runs.jsonl"))
    options = parser.parse_args()
    if options.seed + options.draws > FIRST_REPORTING_SEED:
        parser.error(f"seeds from {FIRST_REPORTING_SEED} on are for reporting")
    chosen = options.policy or list(GRID)
    labels = tuple(name + setting for name in chosen for setting in GRID[name])
    config = EvidenceConfig(policies=labels, draws=options.draws, first_seed=options.seed)
    with Progress() as bar:
        task = bar.add_task("tuning")
        study = run_evidence(
            config,
            Store(options.store),
            jobs=options.jobs,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    mean = {label: statistics.fmean(study.column(label, "weighted")) for label in study.labels}
    best = {}
    for name in chosen:
        own = [name + setting for setting in GRID[name]]
        best[name] = max(own, key=lambda label: mean[label])
        for label in own:
            print(f"{100 * mean[label]:6.1f} {'*' if label == best[name] else ' '} {label}")
    write_json(options.out, {"environment": environment(), "draws": options.draws, "seed": options.seed,
                             "weighted": mean, "best": best, "digest": study.digest})  # fmt: skip


if __name__ == "__main__":
    main()
