"""The command that orders one queue and says why: order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slosched.cli import common as c

if TYPE_CHECKING:
    from slosched.planner.plan import Plan


def order(
    queue: Annotated[
        Path, typer.Argument(help="JSON or CSV: request_id, prompt_tokens, forecast, ttft_s, …")
    ],
    policy: Annotated[str, typer.Option(help="Policy.")] = "slosched",
    engine: c.EngineName = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Put a queue in order: who goes when, what each may expect, and why.

    Example: slosched order queue.json --policy slosched
    """
    from slosched.cli.queue_file import read_queue
    from slosched.ordering import order as decide

    machine = c.engine_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens)
    snapshot = read_queue(queue, machine)
    with c.compiling():
        plan = decide(snapshot, policy=policy, seed=seed)
        expected = outlook(plan)
    rows = expected
    refused = [snapshot.table.request_ids[row] for row in plan.reject.tolist()]
    if as_json:
        c.print_json({"policy": policy, "now_s": snapshot.now_s, "order": rows, "rejected": refused})
        return
    from rich.table import Table

    table = Table(
        title=f"{policy} at {snapshot.now_s:g} s: {len(rows)} waiting, {len(snapshot.running)} running",
        caption=f"Refused: {', '.join(refused)}" if refused else None,
    )
    for head in ("", "request", "class", "TTFT s", "TPOT ms", "e2e s", "chance", "SLO", "why"):
        table.add_column(head, justify="right" if head[-2:] in (" s", "ms", "ce") else "left")
    for row in rows:
        numbers = (f"{row['ttft_s']:.2f}", f"{1e3 * row['tpot_s']:.1f}", f"{row['e2e_s']:.2f}")
        chance = f"{row['chance']:.0%}" if row["slo"] != "best effort" else "–"
        slo = row["slo"] + (", held" if row["held"] else "")
        who = (str(row["place"]), row["request_id"], row["slo_class"])
        table.add_row(*who, *numbers, chance, slo, row["why"])
    c.print_table(table)


def outlook(plan: Plan) -> list[dict[str, Any]]:
    """What each waiting request may expect under a plan, first to be admitted first.

    Returns
    -------
    list of dict
        place (from 1), request_id, slo_class, predicted ttft_s, tpot_s and e2e_s at the mean of its forecast,
        chance to meet its SLO, slo ("will meet", "will miss" or "best effort": whether the predicted
        latencies keep its limits), held (back in this step), and why it stands where it stands.
    """
    table, expected = plan.snapshot.table, plan.prediction
    held = dict.fromkeys(plan.hold.tolist())
    rows: list[dict[str, Any]] = []
    for at in range(len(plan.snapshot.running), len(expected.rows)):
        row = int(expected.rows[at])
        latency = {kind: float(getattr(expected, kind)[at]) for kind in ("ttft_s", "tpot_s", "e2e_s")}
        limits = {kind: float(getattr(table, kind)[row]) for kind in latency}
        slo = "best effort"
        if any(math.isfinite(limit) for limit in limits.values()):
            slo = "will meet" if all(latency[k] <= limits[k] for k in latency) else "will miss"
        rows.append(
            {"place": len(rows) + 1, "request_id": table.request_ids[row]}
            | {"slo_class": table.classes[table.class_index[row]], **latency}
            | {"chance": float(expected.chance[at]), "slo": slo, "held": row in held}
            | {"why": plan.explain(table.request_ids[row])}
        )
    return rows
