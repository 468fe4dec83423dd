"""A simulator with the step semantics of vLLM's V1 scheduler."""

from slosched.simulator.engine import StepRecord as StepRecord
from slosched.simulator.engine import simulate as simulate
from slosched.simulator.fleet import Change as Change
from slosched.simulator.fleet import FleetRun as FleetRun
from slosched.simulator.fleet import simulate_fleet as simulate_fleet
