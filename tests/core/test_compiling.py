"""Kernels compile with two habits of the compiler off, which are back afterwards."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from numba.core import event, targetconfig
from numba.core.compiler import Flags

from slosched import KeyPolicy, LengthForecast, Request, Snapshot, order
from slosched.core.arrays import Floats, Ints
from slosched.core.compiling import _values, eased

compiles = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the compiler is off")
USUAL = targetconfig.TargetConfig.values


def as_usual() -> bool:
    """Whether nothing of it is left."""
    return gc.isenabled() and targetconfig.TargetConfig.values is USUAL


def test_options_say_what_they_said() -> None:
    """Options of a compilation have the same values either way, given ones and those by default."""
    flags = Flags()
    assert _values(flags) == flags.values()
    flags.nrt, flags.error_model, flags.release_gil = True, "numpy", True
    usual = flags.values()
    with eased():
        assert targetconfig.TargetConfig.values is _values
        assert flags.values() == usual
        assert list(flags.values()) == list(usual)
    assert as_usual()


def test_all_is_as_before_whatever_happens() -> None:
    """Blocks within blocks, an error within, and a collector that was off: each finds what it left."""
    with pytest.raises(ZeroDivisionError), eased(), eased():
        1 / 0  # noqa: B018
    assert as_usual()
    gc.disable()
    try:
        with eased():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

    def within(i: int) -> int:
        with eased():
            return i

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(within, range(100))) == list(range(100))
    assert as_usual()


def test_other_insides_of_numba_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of another make keep their own way."""

    class Other:
        """Options that hold their values elsewhere."""

        options = ("nrt",)

        def values(self) -> dict[str, bool]:
            """As they are."""
            return {"nrt": True}

    monkeypatch.setattr(targetconfig, "TargetConfig", Other)
    usual = Other.values
    with eased():
        assert Other.values is usual


@compiles
def test_an_order_compiles_with_it() -> None:
    """What a policy compiles while `order` waits for it is compiled so."""

    class Compiles(KeyPolicy):
        """Shortest prompt first, by a kernel that no cache holds."""

        name = "compiles"

        def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
            """Prompt tokens."""
            return np.asarray(numba.njit(lambda n: n * 1.0)(snapshot.table.prompt_tokens[rows]))

    seen: list[bool] = []

    class Looks(event.Listener):  # type: ignore[misc]
        """Notes how it is while something compiles."""

        def on_start(self, _: object) -> None:
            """Look."""
            seen.append(not gc.isenabled() and targetconfig.TargetConfig.values is _values)

        def on_end(self, _: object) -> None:
            """Nothing."""

    long, short = (
        Request(request_id=i, prompt_tokens=n, forecast=LengthForecast.point(5))
        for i, n in (("long", 9), ("short", 3))
    )
    with event.install_listener("numba:compile", Looks()):
        assert order([long, short], policy=Compiles()).request_ids == ["short", "long"]
    assert seen
    assert all(seen)
    assert as_usual()
