"""How a belief about what is still to come changes as an answer grows.

A belief is a probability for each bin of remaining tokens. Three refinements, side by side:

- ``none``: the newest state alone decides.
- ``bayes``: TRAIL's product of the last belief, moved on, and the newest one (Shahout et al. 2024, arXiv
  2410.01035, section 3.1). It counts what both know twice and gets overconfident.
- ``prior``: the belief at the prompt's end is an input of the network, which learns how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from slosched.core.arrays import Floats

REFINEMENTS = ("none", "bayes", "prior")


@lru_cache(maxsize=512)
def transition(edges: tuple[float, ...], tokens: int) -> Floats:
    """Probabilities of moving from bin to bin while `tokens` tokens are generated.

    Per token a belief moves from bin i to the next lower one with probability 1 / width of bin i, else stays;
    the lowest keeps all. With TRAIL's equal bins this is the matrix of its section 3.1.

    Parameters
    ----------
    edges
        Edges of the bins in tokens, ascending, one more than bins.
    tokens
        Tokens generated, at least 0.

    Returns
    -------
    ndarray
        Shape (bins, bins); column i says where bin i goes, and sums to 1.

    Examples
    --------
    >>> edges = tuple(51.2 * i for i in range(11))
    >>> np.round(transition(edges, 1)[:2, 1], 5).tolist()
    [0.01953, 0.98047]
    """
    leave = 1.0 / np.maximum(np.diff(edges), 1.0)
    leave[0] = 0.0
    one = np.diag(1.0 - leave) + np.diag(leave[1:], k=1)
    return np.linalg.matrix_power(one, tokens)


def bayes(last: Floats, newest: Floats, edges: Sequence[float], tokens: int) -> Floats:
    """The last belief moved on by `tokens` tokens, times the newest one; the newest alone if they exclude
    each other.

    Examples
    --------
    >>> edges = (0.0, 10.0, 20.0)
    >>> bayes(np.array([0.5, 0.5]), np.array([0.9, 0.1]), edges, 0).round(2).tolist()
    [0.9, 0.1]
    >>> bayes(np.array([1.0, 0.0]), np.array([0.0, 1.0]), edges, 0).tolist()
    [0.0, 1.0]
    """
    product = (transition(tuple(edges), tokens) @ last) * newest
    total = product.sum()
    return product / total if total > 1e-300 else newest
