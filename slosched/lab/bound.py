"""An upper bound on attainment that no schedule can beat, not even one that knows the future.

The engine is relaxed to a divisible resource. Whoever keeps a deadline has had, between its arrival and that
deadline, the engine time that its own tokens cost even in the fullest step; the requests whose spans lie
inside a window cannot have more of it than the window is long. The same holds for the memory their contexts
occupy. The heaviest set of requests that satisfies all windows, fractions allowed, is a linear programme;
its value bounds every policy on every engine with these limits and step times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.engine import Engine
from slosched.core.limits import EngineLimits
from slosched.core.table import Floats, Ints
from slosched.core.workload import Workload

WINDOW_ENDS = 160
"""Starts and ends of windows: so many quantiles of the releases and of the deadlines."""

BASE_SHARES = (0.0, 0.5, 1.0)
"""Shares of a step's constant time charged to decodes, the rest to prefill: each is a valid account."""

CUTS = 60
"""Windows added at a time, those violated most."""

TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Jobs:
    """Work with a release and a deadline; two for a request: its prefill and its decode steps."""

    request: Ints
    release_s: Floats
    deadline_s: Floats
    demands: Floats
    """Shape (resources, jobs), in units of the resource's capacity a second."""


def attainment_bound(workload: Workload, engine: Engine) -> float:
    """Largest share of requests, by weight, that any schedule could let keep all their limits.

    Parameters
    ----------
    workload
        Requests with their true output lengths and arrivals, which the bound may know.
    engine
        The engine.

    Returns
    -------
    float
        From 0 to 1; 1 for an empty workload or one whose weights are all 0.

    Notes
    -----
    Relaxed: a request may be served in fractions, steps are shared as if always full (the constant time of a
    step is spread over as many decodes as can be
    in the engine with hope, or over the whole token budget), cached prefixes are taken to be
    hit whenever any other request has them, and a TPOT limit counts only through the deadline it gives the
    last token. Only windows between `WINDOW_ENDS` quantiles are looked at. Each of these can only raise the
    bound.

    Examples
    --------
    Ten prompts of one second each, all due after four: at most four can be in time.

    >>> import numpy as np
    >>> from dataclasses import replace
    >>> work = Workload.plain(np.zeros(10), np.full(10, 1000), np.ones(10, dtype=np.int64))
    >>> work = replace(work, ttft_s=np.full(10, 4.0))
    >>> engine = Engine(step_time=StepTimeModel(base_s=0.0, prefill_token_s=1e-3))
    >>> round(attainment_bound(work, engine), 6)
    0.4
    """
    from scipy.optimize import linprog
    from scipy.sparse import vstack

    n, weight = len(workload), workload.weight
    total = float(weight.sum())
    if n == 0 or total <= 0:
        return 1.0
    jobs, possible = _jobs(workload, engine)
    value = np.where(possible, 1.0, 0.0)
    windows = _windows(jobs)
    rows: list[Any] = []
    used: set[tuple[int, int]] = set()
    while rows_new := _violated(jobs, windows, value, used):
        rows += rows_new
        matrix = vstack(rows, format="csr")
        bounds = [(0.0, float(most)) for most in possible]
        solved: Any = linprog(-weight, A_ub=matrix, b_ub=np.ones(len(rows)), bounds=bounds)
        value = solved.x
    return float(min(1.0, weight @ np.asarray(value) / total))


def _jobs(workload: Workload, engine: Engine) -> tuple[_Jobs, NDArray[np.bool_]]:
    """The work of every request with a deadline, and who could keep its limits on an idle engine."""
    w, s, limits = workload, engine.step_time, engine.limits
    hit = _shareable(w, limits)
    prompt, decodes = w.prompt_tokens - hit, w.output_tokens - 1
    contexts = decodes * w.prompt_tokens + decodes * (decodes - 1) / 2
    work = prompt * (hit + prompt / 2)
    steps = np.ceil(prompt / limits.max_num_batched_tokens)
    alone_prefill_s = steps * s.base_s + s.prefill_token_s * prompt + s.attention_work_s * work
    alone_decode_s = decodes * (s.base_s + s.sequence_s) + s.kv_token_s * contexts
    pace_s = np.where(decodes > 0, w.tpot_s, 0.0)
    last_s = np.minimum(w.e2e_s, w.ttft_s + decodes * pace_s)
    first_s = np.minimum(w.ttft_s, last_s - alone_decode_s)
    possible = (alone_prefill_s <= first_s) & (alone_prefill_s + alone_decode_s <= last_s)
    possible &= alone_decode_s <= decodes * pace_s

    # A step lasts base + knee·max(0, tokens - knee_tokens) + linear terms; the knee is a line below it.
    slope = min(1.0, s.base_s / (s.knee_token_s * s.knee_tokens)) if s.knee_token_s * s.knee_tokens else 1.0
    token_s = slope * s.knee_token_s
    base_s = s.base_s - token_s * s.knee_tokens
    beside = np.minimum(limits.max_num_seqs, _most_alive(w.arrival_s, w.arrival_s + last_s, possible))
    demands = []
    for share in BASE_SHARES:
        prefill = prompt * (
            s.prefill_token_s + token_s + (1 - share) * base_s / limits.max_num_batched_tokens
        )
        decode = decodes * (s.sequence_s + token_s + share * base_s / beside)
        demands.append((prefill + s.attention_work_s * work, decode + s.kv_token_s * contexts))
    own = contexts - decodes * hit
    lasting_s = s.base_s + s.sequence_s
    squares = decodes * w.prompt_tokens.astype(np.float64) * (w.prompt_tokens - hit)
    demands.append((np.zeros(len(w)), (own * lasting_s + s.kv_token_s * squares) / limits.kv_tokens))

    some = np.flatnonzero(possible & (np.isfinite(first_s) | np.isfinite(last_s)))
    jobs = _Jobs(
        request=np.concatenate([some, some]),
        release_s=np.concatenate([w.arrival_s[some], (w.arrival_s + alone_prefill_s)[some]]),
        deadline_s=np.concatenate([(w.arrival_s + first_s)[some], (w.arrival_s + last_s)[some]]),
        demands=np.stack([np.concatenate([p[some], d[some]]) for p, d in demands]),
    )
    return jobs, possible


def _most_alive(arrival_s: Floats, end_s: Floats, possible: NDArray[np.bool_]) -> Floats:
    """Most requests, for each over its span, that can be in the engine and still keep their limits."""
    starts, ends = np.sort(arrival_s[possible]), np.sort(end_s[possible])
    # The count rises at arrivals only: a span's most is the most at an arrival within it.
    alive = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="left")
    first = np.searchsorted(starts, arrival_s, side="left")
    last = np.maximum(np.searchsorted(starts, end_s, side="right"), first + 1)
    return np.array(
        [alive[i:j].max(initial=1) for i, j in zip(first.tolist(), last.tolist(), strict=True)],
        dtype=np.float64,
    )


def _shareable(workload: Workload, limits: EngineLimits) -> Ints:
    """Leading prompt tokens that another request has too, so that the prefix cache might hold them."""
    n = len(workload)
    blocks = workload.prefix
    if blocks is None or not limits.prefix_cache or not len(blocks.ids):
        return np.zeros(n, dtype=np.int64)
    _, inverse, counts = np.unique(blocks.ids, return_inverse=True, return_counts=True)
    alone = counts[inverse] < 2
    hit = np.zeros(n, dtype=np.int64)
    for i, (begin, end) in enumerate(
        zip(blocks.offsets[:-1].tolist(), blocks.offsets[1:].tolist(), strict=True)
    ):
        hit[i] = int(np.argmax(alone[begin:end])) if alone[begin:end].any() else end - begin
    return np.minimum(hit * blocks.block_tokens, workload.prompt_tokens - 1)


def _windows(jobs: _Jobs) -> Floats:
    """Start and end of every window, shape (windows, 2)."""
    finite = np.isfinite(jobs.deadline_s)
    if not finite.any():
        return np.empty((0, 2))
    starts, ends = jobs.release_s[finite], jobs.deadline_s[finite]
    levels = np.linspace(0, 1, WINDOW_ENDS)
    # Starts round down and ends up to a real one: a window just missing a job's end holds nothing of it.
    a = np.unique(np.quantile(starts, levels, method="lower"))
    b = np.unique(np.quantile(ends, levels, method="higher"))
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.asarray(grid[grid[:, 1] > grid[:, 0]])


def _violated(jobs: _Jobs, windows: Floats, value: Floats, used: set[tuple[int, int]]) -> list[Any]:
    """Constraints the solution breaks, the worst first, as sparse rows over the requests."""
    from scipy.sparse import csr_array

    found: list[tuple[float, int, int]] = []
    for resource, load in _loads(jobs, windows, jobs.demands * value[jobs.request]):
        for at in np.flatnonzero(load > 1 + TOLERANCE).tolist():
            if (resource, at) not in used:
                found.append((-float(load[at]), resource, at))
    rows = []
    for _, resource, at in sorted(found)[:CUTS]:
        used.add((resource, at))
        start, end = windows[at]
        inside = np.flatnonzero((jobs.release_s >= start) & (jobs.deadline_s <= end))
        share = jobs.demands[resource, inside] / (end - start)
        rows.append(
            csr_array(
                (share, (np.zeros(len(inside), dtype=np.int64), jobs.request[inside])), shape=(1, len(value))
            )
        )
    return rows


def _loads(jobs: _Jobs, windows: Floats, demands: Floats) -> Iterator[tuple[int, Floats]]:
    """Share of each window that the jobs inside it need, resource by resource."""
    inside = (jobs.release_s >= windows[:, :1]) & (jobs.deadline_s <= windows[:, 1:])
    length = windows[:, 1] - windows[:, 0]
    for resource in range(len(demands)):
        yield resource, (inside @ demands[resource]) / length
