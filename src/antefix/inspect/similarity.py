"""How similar prefixes of one base model are, whatever their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from antefix.errors import PrefixMismatchError
from antefix.prefix import Prefix


def similarity(first: Prefix, second: Prefix) -> float:
    """Return linear CKA of the values' Gram matrices over the channels, from 0 to 1, averaged over the sites.

    This is centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414), but not centred and with channels in
    place of examples: 1 if the values of both weigh the channels alike, up to a factor, in any order of the tokens, 0
    if they share none; long values count most. Raises `PrefixMismatchError` if the prefixes have different sites.
    """
    if {site.path: site for site in first.sites} != {site.path: site for site in second.sites}:
        raise PrefixMismatchError("two prefixes stand at different sites, so they cannot be compared.")
    found = [_alignment(first.values[site.path], second.values[site.path]) for site in first.sites]
    return sum(found) / len(found)


def similarities(prefixes: Sequence[Prefix]) -> list[list[float]]:
    """Return the similarity of each two prefixes, as a symmetric matrix."""
    table = [[1.0] * len(prefixes) for _ in prefixes]
    for one, other in combinations(range(len(prefixes)), 2):
        table[one][other] = table[other][one] = similarity(prefixes[one], prefixes[other])
    return table


def _alignment(first: Tensor, second: Tensor) -> float:
    """Compare values `(kv_head, token, dim)` by `|A B^T|^2 / (|A A^T| |B B^T|)`, by tokens or by channels."""
    a, b = (tensor.double().transpose(0, 1).flatten(1) for tensor in (first, second))
    if min(len(a), len(b)) > a.shape[1]:
        one, other = a.T @ a, b.T @ b
        shared, size = (one * other).sum(), one.norm() * other.norm()
    else:
        shared, size = (a @ b.T).square().sum(), (a @ a.T).norm() * (b @ b.T).norm()
    return float(shared / size) if size > 0 else float(not a.any() and not b.any())
