"""Says which policy did what no policy may: a key that is no number, a plan that cannot be carried out.

Policies of this package are tested for all that is checked here, so only those of others are watched. The
vLLM adapter has checks of its own, since an engine has to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.base import _knowing as on_a_kept_table

LOOKED_AFTER = 16
"""Calls of a policy after which the table is compared with what it was. Who writes to it does so at once;
to compare takes longer than most keys do."""

NUMBERS = "biuf"
"""Kinds of arrays that keys may have: truth values, integers, floating-point numbers."""


class _Calls:
    """How often a policy was called."""

    def __init__(self) -> None:
        self.count = 0


def watch(policy: Policy) -> Policy:
    """The same policy object, which from now on refuses to do what none may do.

    Parameters
    ----------
    policy
        Any policy; one of this package stays as it is, and so does one that is watched already.

    Examples
    --------
    >>> import numpy as np
    >>> from slosched import KeyPolicy, LengthForecast, Request, Snapshot
    >>> class Unsure(KeyPolicy):
    ...     name = "unsure"
    ...     def key(self, snapshot, rows):
    ...         return np.full(len(rows), np.nan)
    >>> Unsure.__module__ = "mine"  # as if it stood in a file of yours
    >>> queue = Snapshot.of([Request(request_id="a", prompt_tokens=9, forecast=LengthForecast.point(5))])
    >>> watch(Unsure()).plan(queue)
    Traceback (most recent call last):
    slosched.core.errors.InputError: policy unsure: key must be never NaN, got NaN for 'a' (1 of 1).
    """
    kind = type(policy)
    watched = "plan" in vars(policy) or "key" in vars(policy) if hasattr(policy, "__dict__") else True
    if watched or kind.__module__.partition(".")[0] == "slosched":
        return policy
    calls = _Calls()
    if isinstance(policy, KeyPolicy):
        object.__setattr__(policy, "key", partial(_key, policy, calls))
    if kind.plan is not KeyPolicy.plan:
        object.__setattr__(policy, "plan", partial(_plan_on_any_table, policy, calls))
    return policy


def _plan_on_any_table(policy: Policy, calls: _Calls, snapshot: Snapshot) -> Plan:
    """The plan of a policy, looked at before it moves to a table that stands for one instant only."""
    made: Plan = on_a_kept_table(partial(_plan, calls=calls))(policy, snapshot)
    return made


def _key(policy: KeyPolicy, calls: _Calls, snapshot: Snapshot, rows: Ints) -> Floats:
    """The keys of a policy, looked at."""
    given = rows.copy()
    made: Any = _called(
        policy, "key", calls, snapshot, given, lambda: type(policy).key(policy, snapshot, rows)
    )
    if not np.array_equal(rows, given):
        raise _wrong(policy, "key must not change the rows it is given")
    key = np.asarray(made)
    if key.dtype.kind not in NUMBERS:
        raise _wrong(policy, f"key must be numbers, got {_kind_of(made)}")
    if key.shape != rows.shape:
        raise _wrong(policy, f"key must be one number for each of {len(rows)} rows, got shape {key.shape}")
    if key.dtype.kind == "f" and np.isnan(key).any():
        bad = np.flatnonzero(np.isnan(key))
        name = snapshot.table.request_ids[int(rows[bad[0]])]
        raise _wrong(policy, f"key must be never NaN, got NaN for {name!r} ({len(bad)} of {len(key)})")
    return key


def _plan(policy: Policy, snapshot: Snapshot, calls: _Calls) -> Plan:
    """The plan of a policy, looked at."""
    plan = getattr(type(policy).plan, "__wrapped__", type(policy).plan)  # as its author wrote it
    rows = np.concatenate([snapshot.waiting, snapshot.running])
    made = _called(policy, "plan", calls, snapshot, rows, lambda: plan(policy, snapshot))
    if not isinstance(made, Plan):
        raise _wrong(policy, f"plan must return a Plan, got {_kind_of(made)}")
    if not np.array_equal(rows, np.concatenate([snapshot.waiting, snapshot.running])):
        raise _wrong(policy, "plan must not change the rows of the snapshot")
    try:
        made.check(snapshot)
    except InputError as error:
        raise _wrong(policy, f"plan: {error}".removesuffix(".")) from None
    except (TypeError, ValueError) as error:
        raise _wrong(policy, f"plan: {error}") from error
    return made


def _called(
    policy: Policy, verb: str, calls: _Calls, snapshot: Snapshot, rows: Ints, call: Callable[[], object]
) -> object:
    """What the policy says, and for its first calls whether it wrote to the table."""
    calls.count += 1
    looks = calls.count <= LOOKED_AFTER
    before = _columns(snapshot, rows) if looks else {}
    try:
        made = call()
    except SystemExit as end:
        raise _wrong(policy, f"{verb} ended the program (SystemExit: {end})") from end
    if looks:
        for name, column in _columns(snapshot, rows).items():
            if not np.array_equal(column, before[name], equal_nan=True):
                words = f"{verb} must not write to {name} of the table; its own are columns of table.extra"
                raise _wrong(policy, words)
    return made


def _columns(snapshot: Snapshot, rows: Ints) -> dict[str, Any]:
    """Rows of the table's columns, as copies."""
    return {
        name: column[rows]
        for name, column in vars(snapshot.table).items()
        if isinstance(column, np.ndarray) and len(column) == snapshot.table.capacity
    }


def _kind_of(made: object) -> str:
    """What something is, in words."""
    return f"an array of {made.dtype}" if isinstance(made, np.ndarray) else type(made).__name__


def _wrong(policy: Policy, words: str) -> InputError:
    return InputError(f"policy {getattr(policy, 'name', type(policy).__name__)}: {words}.")
