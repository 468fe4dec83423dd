"""Step times summed from LLMServingSim's kernel tables (operators of vLLM timed one by one)."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from slosched.core.arrays import Floats

CHUNKS = tuple(2**i for i in range(4, 12))
CONTEXTS = tuple(2**i for i in range(4, 15))
SEQUENCES = tuple(2**i for i in range(8))
# Operators that run once a step, and those that run twice in a layer; all others run once in a layer.
ONCE = ("embedding", "final_layernorm")
TWICE = ("layernorm",)


def read(path: Path) -> list[list[str]]:
    """Rows of a gzipped CSV file without its header."""
    with gzip.open(path, "rt") as stream:
        return list(csv.reader(stream))[1:]


class KernelTables:
    """Operator times of one model on one GPU.

    Parameters
    ----------
    folder
        The data folder.
    name
        Table name, such as ``rtx4090_llama318b``.
    layers
        Decoder layers of the model.
    """

    def __init__(self, folder: Path, name: str, layers: int) -> None:
        self.layers = layers
        stem = folder / "latency" / f"llmservingsim_{name}"
        self.dense = self._curves(Path(f"{stem}_dense.csv.gz"))
        self.per_sequence = self._curves(Path(f"{stem}_per_sequence.csv.gz"))
        cells = {tuple(map(int, row[:4])): float(row[4]) for row in read(Path(f"{stem}_attention.csv.gz"))}
        decode = np.array([[cells[(0, 0, n, context)] for context in CONTEXTS] for n in (*SEQUENCES, 256)])
        self.decode = RegularGridInterpolator(((*SEQUENCES, 256), CONTEXTS), decode)
        mixed = np.array([
            [
                [[cells[(c, before, n, k) if n and k else (c, before, 0, 0)] for k in (0, *CONTEXTS)]
                 for n in (0, *SEQUENCES)]
                for before in (0, *CONTEXTS)
            ]
            for c in CHUNKS
        ])  # fmt: skip
        axes = (CHUNKS, (0, *CONTEXTS), (0, *SEQUENCES), (0, *CONTEXTS))
        self.mixed = RegularGridInterpolator(axes, mixed)

    @staticmethod
    def _curves(path: Path) -> dict[str, Floats]:
        curves: dict[str, list[tuple[float, float]]] = {}
        for operator, size, time_us in read(path):
            curves.setdefault(operator, []).append((float(size), float(time_us)))
        return {operator: np.array(sorted(points)).T for operator, points in curves.items()}

    def step_s(self, chunk: Floats, before: Floats, sequences: Floats, context: Floats) -> Floats:
        """Seconds of steps, interpolated linearly in the tables, clipped at their ends.

        Parameters
        ----------
        chunk, before
            Prefill tokens of the step, as one chunk, and context before it.
        sequences, context
            Decoding requests and tokens of context of each.
        """
        total_us = np.zeros(len(chunk))
        for operator, (size, time_us) in self.dense.items():
            times = 1 if operator in ONCE else self.layers * (2 if operator in TWICE else 1)
            total_us += times * np.interp(chunk + sequences, size, time_us)
        for size, time_us in self.per_sequence.values():
            total_us += np.interp(sequences + (chunk > 0), size, time_us)
        read_context = np.clip(context, CONTEXTS[0], CONTEXTS[-1])
        decode = self.decode(np.column_stack([np.clip(sequences, 1, 256), read_context]))
        mixed = self.mixed(
            np.column_stack([np.clip(chunk, CHUNKS[0], CHUNKS[-1]), np.minimum(before, CONTEXTS[-1]),
                             np.minimum(sequences, SEQUENCES[-1]), read_context])
        )  # fmt: skip
        return np.asarray((total_us + self.layers * np.where(chunk > 0, mixed, decode)) * 1e-6)
