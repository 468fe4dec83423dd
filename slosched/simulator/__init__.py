"""A simulator with the step semantics of vLLM's V1 scheduler."""

from slosched.simulator.engine import StepRecord as StepRecord
from slosched.simulator.engine import simulate as simulate
