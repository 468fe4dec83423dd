"""An upper bound on attainment that no schedule can beat, not even one that knows the future.

Whoever keeps its limits has had its prompt computed between its arrival and its first token's deadline, and
its answer between the end of its prompt, computed alone, and its last token's deadline. The steps that do so
for all requests whose spans lie inside a window of time fit into the window. What a request costs of a step
is the time that grows with its tokens, and a part of the step's constant time. There are several lawful ways
to share out the constant time, called accounts here, and each gives one constraint per window:

- tokens: by the token, of which a step holds at most the token budget;
- slots: by the answer being decoded. At most so many share a step as there are slots, as are alive at once
  with hope, and on average as the request's own pace allows: a step that is to last at most ``pace`` has room
  for no more;
- memory: by the KV tokens that a decoded answer holds, of which there are as many as the cache has;
- work: in proportion to the time that grows with tokens. A request that must keep a pace takes part in steps
  that do, on average, at most ``pace`` less the constant time of it.

The heaviest set of requests that satisfies all windows, fractions allowed, is a linear programme. Its value
bounds every policy on every engine with these limits and step times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload

WINDOW_ENDS = 240
"""Starts and ends of windows: so many quantiles of the releases and of the deadlines. Any number is valid."""

CUTS, ROUNDS = 40, 40
"""Windows added at a time, those violated most, and how often at most. Fewer leave a valid, higher bound."""

TOLERANCE = 1e-6
"""Overload of a window, relative, that is let pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Jobs:
    """Work with a release and a deadline; two for a request: its prompt and its answer."""

    request: Ints
    release_s: Floats
    deadline_s: Floats
    demand_s: Floats
    """Shape (accounts, jobs): seconds of the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """What each request needs of an engine of its own, and when; columns over the requests."""

    hit: Ints
    """Prompt tokens that a prefix cache may provide."""
    new: Ints
    decodes: Ints
    """Prompt tokens and decode steps to compute."""
    work: Floats
    contexts: Floats
    """Attention work of the prompt, in pairs of tokens, and context tokens read by all decode steps."""
    prefill_s: Floats
    decode_s: Floats
    """Seconds of the prompt, and of all decode steps, alone."""
    first_s: Floats
    last_s: Floats
    """Seconds from arrival to the latest first and last token with which all limits can be kept."""
    pace_s: Floats
    """Mean seconds that its decode steps may last at most."""
    possible: NDArray[np.bool_]
    """Whether it could keep its limits on an idle engine."""


def attainment_bound(workload: Workload, engine: Engine) -> float:
    """Largest share of requests, by weight, that any schedule could let keep all their limits.

    Limits on first answer tokens are left out: with them the share can only be smaller.

    Parameters
    ----------
    workload
        Requests with their true output lengths and arrivals, which the bound may know.
    engine
        Limits and step times.

    Returns
    -------
    float
        From 0 to 1; 1 for an empty workload or one whose weights are all 0.

    Notes
    -----
    Relaxed: requests may be served in fractions, steps start and end where a window does, a prefix is taken
    to be cached whenever another request has it, and a TPOT limit counts through a request's pace and last
    deadline. A turn in a closed loop counts only if it is hopeless alone, since the schedule itself decides
    when it is sent. Each of these can only raise the bound.

    Examples
    --------
    Ten prompts of one second each, all due after four: at most four can be in time.

    >>> import numpy as np
    >>> from dataclasses import replace
    >>> work = Workload.plain(np.zeros(10), np.full(10, 1000), np.ones(10, dtype=np.int64))
    >>> work = replace(work, ttft_s=np.full(10, 4.0))
    >>> engine = Engine(limits=EngineLimits(), step_time=StepTimeModel(base_s=0.0, prefill_token_s=1e-3))
    >>> round(attainment_bound(work, engine), 6)
    0.4
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, vstack

    weight = workload.weight
    total = float(weight.sum())
    if len(workload) == 0 or total <= 0:
        return 1.0
    spans = spans_of(workload, engine)
    jobs = _jobs(workload, spans, engine.limits, engine.step_time)
    windows = _Windows(jobs)
    value = np.where(spans.possible, 1.0, 0.0)
    rows: list[Any] = []
    used: set[tuple[int, int, int]] = set()
    for _ in range(ROUNDS):
        cuts = [cut for cut in windows.violated(value) if cut not in used][:CUTS]
        if not cuts:
            break
        used.update(cuts)
        rows += [csr_array(windows.constraint(cut, len(value))) for cut in cuts]
        bounds: Any = np.column_stack([np.zeros(len(value)), spans.possible])
        solved: Any = linprog(
            -weight, A_ub=vstack(rows, format="csr"), b_ub=np.ones(len(rows)), bounds=bounds
        )
        value = solved.x
    return float(min(1.0, weight @ np.asarray(value) / total))


def possible_alone(workload: Workload, engine: Engine) -> NDArray[np.bool_]:
    """Which requests could keep their limits on an idle engine."""
    return spans_of(workload, engine).possible


def spans_of(workload: Workload, engine: Engine) -> Spans:
    """What each request needs of an engine of its own."""
    w, limits, s = workload, engine.limits, engine.step_time
    hit = _shareable(w, limits)
    new, decodes = w.prompt_tokens - hit, w.output_tokens - 1
    contexts = decodes * w.prompt_tokens + decodes * (decodes - 1) / 2
    work = new * (hit + new / 2)
    steps = np.ceil(new / limits.max_num_batched_tokens)
    prefill_s = steps * s.base_s + s.prefill_token_s * new + s.attention_work_s * work
    decode_s = decodes * (s.base_s + s.sequence_s) + s.kv_token_s * contexts
    paced_s = np.where(decodes > 0, w.tpot_s, 0.0)
    last_s = np.minimum(w.e2e_s, w.ttft_s + decodes * paced_s)
    first_s = np.minimum(w.ttft_s, last_s - decode_s)
    possible = (prefill_s <= first_s) & (prefill_s + decode_s <= last_s) & (decode_s <= decodes * paced_s)
    left_s = (last_s - prefill_s) / np.maximum(1, decodes)
    return Spans(
        hit=hit, new=new, decodes=decodes, work=work, contexts=contexts, prefill_s=prefill_s,
        decode_s=decode_s, first_s=first_s, last_s=last_s,
        pace_s=np.where(decodes > 0, np.minimum(w.tpot_s, left_s), np.inf), possible=possible,
    )  # fmt: skip


def _jobs(w: Workload, spans: Spans, limits: EngineLimits, s: StepTimeModel) -> _Jobs:
    """The prompts and answers that have a deadline, with what they cost in each account."""
    new, decodes, contexts = spans.new, spans.decodes, spans.contexts
    # A step lasts base + knee·max(0, tokens - knee_tokens) + linear terms; the knee is a line below it.
    slope = min(1.0, s.base_s / (s.knee_token_s * s.knee_tokens)) if s.knee_token_s * s.knee_tokens else 1.0
    token_s = slope * s.knee_token_s
    base_s = s.base_s - token_s * s.knee_tokens
    prompt_s = new * (s.prefill_token_s + token_s) + s.attention_work_s * spans.work
    answer_s = decodes * (s.sequence_s + token_s) + s.kv_token_s * contexts

    longest = float((w.prompt_tokens + w.output_tokens).max())
    least, most = float(w.prompt_tokens.min()), min(limits.max_num_seqs, limits.max_num_batched_tokens)
    read = most * longest if w.prefix is not None and limits.prefix_cache else float(limits.kv_tokens)
    busiest_s = limits.max_num_batched_tokens * (s.prefill_token_s + token_s + s.attention_work_s * longest)
    busiest_s += most * (s.sequence_s + token_s) + s.kv_token_s * min(read, most * longest)
    room_s = np.minimum(busiest_s, spans.pace_s - base_s)

    one_s = s.sequence_s + token_s
    mean = contexts / np.maximum(1, decodes)
    others = np.maximum(0.0, spans.pace_s - base_s - one_s - s.kv_token_s * mean) + 1e-15
    fit = 1.0 + others / (one_s + s.kv_token_s * least + 1e-15)
    beside = np.minimum(np.minimum(limits.max_num_seqs, _most_alive(w, spans)), fit)
    # Σ √(cost of a decode step), from below: costs rise along a line, and the root is concave.
    roots = np.sqrt(one_s + s.kv_token_s * w.prompt_tokens)
    roots = decodes / 2 * (roots + np.sqrt(one_s + s.kv_token_s * (w.prompt_tokens + decodes - 1)))
    shares = (
        (new / limits.max_num_batched_tokens, decodes / limits.max_num_batched_tokens),
        (0.0 * new, decodes / beside),
        (0.0 * new, (contexts - decodes * spans.hit) / limits.kv_tokens),
        (prompt_s / (busiest_s + 1e-15), roots**2 / (np.maximum(1, decodes) * room_s + 1e-15)),
    )
    limited = np.isfinite(spans.first_s) | np.isfinite(spans.last_s)
    some = np.flatnonzero(spans.possible & limited & (w.previous < 0))
    costs = [
        np.concatenate([(prompt_s + base_s * p)[some], (answer_s + base_s * d)[some]]) for p, d in shares
    ]
    arrival = w.arrival_s
    return _Jobs(
        request=np.concatenate([some, some]),
        release_s=np.concatenate([arrival[some], (arrival + spans.prefill_s)[some]]),
        deadline_s=np.concatenate([(arrival + spans.first_s)[some], (arrival + spans.last_s)[some]]),
        demand_s=np.stack(costs),
    )


def _most_alive(w: Workload, spans: Spans) -> Floats:
    """Most requests, for each over its span, that can be in the engine and still keep their limits.

    Of every session one turn more may be there at any time: when it is sent is up to the schedule.
    """
    turns = w.previous >= 0
    known = spans.possible & ~turns
    end_s = w.arrival_s + spans.last_s
    starts, ends = np.sort(w.arrival_s[known]), np.sort(end_s[known])
    # The count rises at arrivals only: a span's most is the most at an arrival within it.
    alive = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="left")
    first = np.searchsorted(starts, w.arrival_s, side="left")
    last = np.maximum(np.searchsorted(starts, end_s, side="right"), first + 1)
    most = [alive[i:j].max(initial=1) for i, j in zip(first.tolist(), last.tolist(), strict=True)]
    return np.array(most, dtype=np.float64) + len(np.unique(w.session[turns]))


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


class _Windows:
    """All windows between some releases and some deadlines, and what the jobs inside need of them."""

    def __init__(self, jobs: _Jobs) -> None:
        finite = np.isfinite(jobs.deadline_s)
        self.jobs = _Jobs(
            request=jobs.request[finite],
            release_s=jobs.release_s[finite],
            deadline_s=jobs.deadline_s[finite],
            demand_s=jobs.demand_s[:, finite],
        )
        levels = np.linspace(0, 1, WINDOW_ENDS)
        release, deadline = self.jobs.release_s, self.jobs.deadline_s
        if not len(release):
            release = deadline = np.zeros(1)
        # Starts round down and ends up to a real one: a window just missing a job's end holds nothing of it.
        self.starts = np.unique(np.quantile(release, levels, method="lower"))
        self.ends = np.unique(np.quantile(deadline, levels, method="higher"))
        self.length_s = self.ends[None, :] - self.starts[:, None]
        # A job is inside the windows that start at its place or before, and end at its place or after.
        self.start_of = np.searchsorted(self.starts, self.jobs.release_s, side="right") - 1
        self.end_of = np.searchsorted(self.ends, self.jobs.deadline_s, side="left")

    def violated(self, value: Floats) -> list[tuple[int, int, int]]:
        """Accounts and windows that the jobs overload, the worst first: (account, start, end)."""
        found: list[tuple[float, tuple[int, int, int]]] = []
        shape = (len(self.starts), len(self.ends))
        place = np.ravel_multi_index((self.start_of, self.end_of), shape)
        for account, demand_s in enumerate(self.jobs.demand_s):
            each = np.bincount(place, weights=demand_s * value[self.jobs.request], minlength=np.prod(shape))
            inside = np.cumsum(np.cumsum(each.reshape(shape)[::-1], axis=0)[::-1], axis=1)
            excess = np.divide(inside, self.length_s, out=np.zeros(shape), where=self.length_s > 0)
            # In each row only the worst end: its neighbours say nearly the same.
            worst = np.argmax(excess, axis=1)
            for start, end in enumerate(worst.tolist()):
                if excess[start, end] > 1 + TOLERANCE:
                    found.append((-float(excess[start, end]), (account, start, end)))
        return [cut for _, cut in sorted(found)]

    def constraint(self, cut: tuple[int, int, int], n: int) -> Floats:
        """What each request needs of a window, as a share of its length, shape (1, n)."""
        account, start, end = cut
        inside = (self.start_of >= start) & (self.end_of <= end)
        share = self.jobs.demand_s[account, inside] / self.length_s[start, end]
        return np.asarray(np.bincount(self.jobs.request[inside], share, n)[None, :], dtype=np.float64)
