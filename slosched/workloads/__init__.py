"""Requests over time: readers, generators, service-level objectives, forecasts."""

from slosched.core.workload import PrefixBlocks as PrefixBlocks
from slosched.core.workload import Workload as Workload
from slosched.core.workload import fit_to_engine as fit_to_engine
from slosched.workloads.arrivals import burst_arrivals as burst_arrivals
from slosched.workloads.arrivals import gamma_arrivals as gamma_arrivals
from slosched.workloads.arrivals import resample as resample
from slosched.workloads.arrivals import rescale as rescale
from slosched.workloads.arrivals import shaped_arrivals as shaped_arrivals
from slosched.workloads.builtin import generate as generate
from slosched.workloads.builtin import mixed as mixed
from slosched.workloads.describe import describe as describe
from slosched.workloads.mix import cut as cut
from slosched.workloads.mix import merge as merge
from slosched.workloads.mix import relabel as relabel
from slosched.workloads.mix import thin as thin
from slosched.workloads.mixes import MIXES as MIXES
from slosched.workloads.mixes import mix as mix
from slosched.workloads.noise import FORECASTS as FORECASTS
from slosched.workloads.noise import with_forecast as with_forecast
from slosched.workloads.readers import FORMATS as FORMATS
from slosched.workloads.readers import read as read
from slosched.workloads.slos import ClassSpec as ClassSpec
from slosched.workloads.slos import with_slos as with_slos
from slosched.workloads.writer import write as write
