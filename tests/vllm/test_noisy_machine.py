"""On a machine whose steps vary and stall, a learned step time never makes slosched worse than stock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.integrations.vllm import controller
from slosched.integrations.vllm.clock import StepWatch
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.state import Learned
from slosched.policies import policy
from slosched.testing.virtual_clock import PS, VirtualEngine
from slosched.testing.wall_engine import Shared

from .test_background import ENGINE, tiers

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


class Noisy(VirtualEngine):
    """Steps as long as a shared machine makes them; slosched begins with a preset and learns."""

    slowness: Shared

    def learned(self) -> Learned:
        return Learned(Config().engine)

    def learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Time steps on the virtual clock."""
        held = self.scheduler.slosched
        held.watch = held.snapshots._watch = StepWatch(held.learned, measure=True)
        clock = SimpleNamespace(perf_counter=lambda: self.now_ps * PS)
        monkeypatch.setattr(controller, "time", clock)

    def schedule(self) -> Any:
        begin = max(self.now_ps, self.end_ps)
        output = super().schedule()
        if output.num_scheduled_tokens:
            longer = self.slowness(begin * PS)
            self.end_ps = self.flights[-1].end_ps = begin + int((self.end_ps - begin) * longer)
        return output


@pytest.mark.parametrize("slow", [1.0, 3.0])
def test_a_learned_step_time_costs_no_throughput(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is twice too slow halves it: 40 s for what takes 27."""
    kept, ends = [], []
    for seed in range(2):
        work = tiers(150, seed, 6.0 / slow**0.5)
        for name in ("stock", "slosched"):
            engine = Noisy(work, ENGINE)
            engine.slowness = Shared(seed, slow=slow)
            if name == "stock":
                engine.use_stock(priority=False)
            else:
                engine.use_policy(policy("slosched", seed=0))
                engine.learn(monkeypatch)
            engine.run()
            out = engine.result(0.0).outcomes
            assert out.finished.all()
            kept.append(float(out.met.mean()))
            ends.append(float(out.finish_s.max()))
    assert np.mean(kept[1::2]) > np.mean(kept[::2]), kept
    assert np.mean(ends[1::2]) < 1.15 * np.mean(ends[::2]), ends
