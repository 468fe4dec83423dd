"""Seconds of one engine step, linear in the work the step does."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from slosched.core.arrays import Floats as Floats
from slosched.core.arrays import Ints as Ints
from slosched.core.errors import require

PS_PER_S = 10**12
FS_PER_S = 10**15
# Keeps every product of a coefficient with the work of a step far inside an int64 of picoseconds.
MAX_COEFFICIENT_S = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeModel:
    """Step time, linear in the work of the step.

    seconds = base + prefill_token·T + attention_work·A + sequence·B + kv_token·K
              + knee_token·max(0, T + B - knee_tokens)

    with T prefill tokens in the step, A = sum over prefill chunks of chunk·(context before + chunk/2),
    B decoding requests, K tokens of context they read.

    Parameters
    ----------
    base_s
        Seconds of a step that does almost nothing: weights read once, launches, scheduling.
    prefill_token_s
        Seconds per prefill token.
    attention_work_s
        Seconds per unit of A, that is per pair of a prefill token and a token it attends to.
    sequence_s
        Seconds per decoding request.
    kv_token_s
        Seconds per token of context read by decodes.
    knee_tokens
        Tokens in a step (T + B) above which matrix products are bound by arithmetic, not by reading weights.
    knee_token_s
        Further seconds per token above the knee.

    Notes
    -----
    All coefficients in seconds are finite, at least 0 and at most 1000; `knee_tokens` is an integer of at
    least 0. The linear form in tokens, sequences and context is that of FairBatching (arXiv 2510.14392)
    and of Sarathi-Serve's cost analysis (arXiv 2403.02310, section 3); the knee is the roofline's.

    Examples
    --------
    >>> model = StepTimeModel(base_s=0.008, sequence_s=7e-5, kv_token_s=6e-8)
    >>> float(model.predict(sequences=10, kv_tokens=10_000)).__round__(6)
    0.0093
    """

    base_s: float
    prefill_token_s: float = 0.0
    attention_work_s: float = 0.0
    sequence_s: float = 0.0
    kv_token_s: float = 0.0
    knee_tokens: int = 0
    knee_token_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "knee_tokens":
                ok = isinstance(value, int) and 0 <= value <= 2**31
                require(ok, field.name, "an integer from 0 to 2**31", value)
            else:
                domain = "a finite number of seconds from 0 to 1000"
                require(0 <= value <= MAX_COEFFICIENT_S, field.name, domain, value)

    def predict(
        self,
        prefill_tokens: ArrayLike = 0,
        attention_work: ArrayLike = 0,
        sequences: ArrayLike = 0,
        kv_tokens: ArrayLike = 0,
    ) -> Floats:
        """Seconds of steps with the given work; arguments broadcast.

        Parameters
        ----------
        prefill_tokens, attention_work, sequences, kv_tokens
            T, A, B and K of the class docstring, each at least 0.

        Returns
        -------
        Floats
            Seconds, in the shape the arguments broadcast to.
        """
        t = np.asarray(prefill_tokens, dtype=np.float64)
        b = np.asarray(sequences, dtype=np.float64)
        linear = (
            self.base_s
            + self.prefill_token_s * t
            + self.attention_work_s * np.asarray(attention_work, dtype=np.float64)
            + self.sequence_s * b
            + self.kv_token_s * np.asarray(kv_tokens, dtype=np.float64)
        )
        return np.asarray(linear + self.knee_token_s * np.maximum(0.0, t + b - self.knee_tokens))

    def coefficients_ps(self) -> Ints:
        """Coefficients as integers, for clocks that count picoseconds.

        Returns
        -------
        Ints
            Shape (7,): base, prefill_token, sequence, kv_token (picoseconds), knee_tokens (tokens),
            knee_token (picoseconds), attention_work (**femto**seconds per unit of A).

        Notes
        -----
        With W2 = 2·A = sum of chunk·(2·context before + chunk), an integer, a step lasts exactly

            base + prefill_token·T + sequence·B + kv_token·K + knee_token·max(0, T + B - knee_tokens)
            + (attention_work·W2) // 2000

        picoseconds. All terms of a decode step are integer products, so a run of decode steps in closed form
        (`decode_run_ps`) equals the sum of its steps to the bit. Rounding a coefficient to a picosecond
        changes it by less than 1 in 10^4 from 5 ns per token upwards.

        Examples
        --------
        >>> StepTimeModel(base_s=0.004, kv_token_s=3e-8, attention_work_s=8e-10).coefficients_ps().tolist()
        [4000000000, 0, 0, 30000, 0, 0, 800000]
        """
        seconds = (self.base_s, self.prefill_token_s, self.sequence_s, self.kv_token_s)
        return np.array(
            [round(value * PS_PER_S) for value in seconds]
            + [
                self.knee_tokens,
                round(self.knee_token_s * PS_PER_S),
                round(self.attention_work_s * FS_PER_S),
            ],
            dtype=np.int64,
        )

    def predict_ps(
        self,
        prefill_tokens: ArrayLike = 0,
        twice_attention_work: ArrayLike = 0,
        sequences: ArrayLike = 0,
        kv_tokens: ArrayLike = 0,
    ) -> Ints:
        """Integer picoseconds of steps, the definition that the simulator's clock follows.

        Parameters
        ----------
        prefill_tokens, sequences, kv_tokens
            T, B and K of the class docstring.
        twice_attention_work
            W2 = sum of chunk·(2·context before + chunk), which is an integer where A may be a half.

        Returns
        -------
        Ints
            Picoseconds, in the shape the arguments broadcast to.
        """
        base, prefill, sequence, kv, knee_tokens, knee, attention = self.coefficients_ps().tolist()
        t, w2, b, k = (
            np.asarray(value, dtype=np.int64)
            for value in (prefill_tokens, twice_attention_work, sequences, kv_tokens)
        )
        above = np.maximum(0, t + b - knee_tokens)
        return np.asarray(
            base + prefill * t + sequence * b + kv * k + knee * above + (attention * w2) // 2000
        )

    def decode_run_ps(self, steps: ArrayLike, sequences: ArrayLike, kv_tokens: ArrayLike) -> Ints:
        """Picoseconds of a run of decode steps with nobody joining or leaving, in closed form.

        Parameters
        ----------
        steps
            Number of steps, at least 0.
        sequences
            Decoding requests B, the same in each step.
        kv_tokens
            Context K read in the first step; each later step reads B tokens more.

        Returns
        -------
        Ints
            Sum over i < steps of ``predict_ps(0, 0, B, K + i·B)``, exactly.

        Examples
        --------
        >>> model = StepTimeModel(base_s=0.004, sequence_s=4e-5, kv_token_s=3e-8)
        >>> int(model.decode_run_ps(3, 2, 100))
        12249180000
        >>> int(sum(model.predict_ps(sequences=2, kv_tokens=100 + 2 * i) for i in range(3)))
        12249180000
        """
        n, b, k = (np.asarray(value, dtype=np.int64) for value in (steps, sequences, kv_tokens))
        kv = int(self.coefficients_ps()[3])
        first = self.predict_ps(sequences=b, kv_tokens=k)
        return np.asarray(n * first + kv * b * (n * (n - 1) // 2))

    def decode_run(self, steps: ArrayLike, sequences: ArrayLike, kv_tokens: ArrayLike) -> Floats:
        """Seconds of a run of decode steps with nobody joining or leaving; see `decode_run_ps`."""
        return np.asarray(self.decode_run_ps(steps, sequences, kv_tokens) / PS_PER_S)
