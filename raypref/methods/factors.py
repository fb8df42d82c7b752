"""The start of a factorisation where several users judged the same pairs: the SVD of who preferred what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raypref.types import Episodes, Pairs

MOST_PAIRS = 1024
"""Pairs in the matrix at most: those that most users judged."""

COMPLETIONS = 10
"""Rounds that fill in the missing judgements."""

SLOPE = 4.0
"""A margin over a probability's distance from one half, where σ is straight."""

RIDGE = 0.1
"""Ridge of the regression on embeddings, as a share of the mean eigenvalue of their Gram matrix."""

MULTIPLIER = 0x1E3779B97F4A7C15
"""Odd, so that its powers scatter over the 64-bit integers."""


@dataclass(frozen=True)
class Factors:
    """A factorisation of N pairs × U users: their margins are about target_NK @ weights_UK.T."""

    key_N: Tensor
    """What `name` calls each pair, ascending."""
    target_NK: Tensor
    """What the K basis differences of each pair should be."""
    weights_UK: Tensor
    """Weights of the seen users; 0 of those who judged none of the pairs."""
    known_U: Tensor
    """Whether a user judged any of the pairs."""

    def bases(self, seen: Iterable[Episodes], standardise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return bases_DK whose differences are nearest to the targets: ridge regression on embeddings."""
        delta_ND: Tensor | None = None
        for episodes in seen:
            pairs = episodes.target
            key_BP, sign_BP = name(pairs)
            at_BP = torch.searchsorted(self.key_N, key_BP).clamp_max(len(self.key_N) - 1)
            found_BP = (self.key_N[at_BP] == key_BP) & (pairs.mask_BP > 0)
            found_MD = standardise(pairs.chosen_BPD[found_BP]) - standardise(pairs.rejected_BPD[found_BP])
            if delta_ND is None:
                delta_ND = found_MD.new_zeros(len(self.key_N), found_MD.shape[1])
            delta_ND[at_BP[found_BP]] = sign_BP[found_BP].unsqueeze(-1) * found_MD
        if delta_ND is None:
            raise ValueError("`seen` may be iterated once only")
        gram_NN = delta_ND @ delta_ND.mT
        ridge = RIDGE * gram_NN.trace() / min(delta_ND.shape)
        identity_NN = torch.eye(len(gram_NN), device=gram_NN.device)
        return delta_ND.mT @ torch.linalg.solve(gram_NN + ridge * identity_NN, self.target_NK)


def factorise(seen: Iterable[Episodes], users: int, bases: int, least_share: float) -> Factors | None:
    """Return the K leading factors of who preferred what, or None where too few comparisons are shared.

    Judgements are ±½ around the undecided 0; missing ones start there and are filled in from a
    reconstruction of rank K (PReF, arXiv 2503.06358: of rank 100 at most). The scale is that of margins.

    Args:
        seen: comparisons of seen users as targets.
        users: rows of the table of seen users.
        bases: K.
        least_share: of the comparisons that must be on a pair that another user judged too.
    """
    names: list[Tensor] = []
    signs: list[Tensor] = []
    rows: list[Tensor] = []
    for episodes in seen:
        real_BP = episodes.target.mask_BP > 0
        key_BP, sign_BP = name(episodes.target)
        names.append(key_BP[real_BP])
        signs.append(sign_BP[real_BP])
        rows.append(episodes.user_B.unsqueeze(-1).expand_as(real_BP)[real_BP])
    if not names:
        return None
    key_A, pair_M = torch.unique(torch.cat(names), return_inverse=True)
    sign_M, row_M = torch.cat(signs), torch.cat(rows)
    judges_A = torch.bincount(torch.unique(pair_M * users + row_M) // users, minlength=len(key_A))
    shared = int((judges_A > 1).sum())
    if shared < bases or float((judges_A[pair_M] > 1).float().mean()) < least_share:
        return None
    most_N = judges_A.argsort(descending=True, stable=True)[: min(shared, MOST_PAIRS)].sort().values
    place_A = torch.full_like(judges_A, -1)
    place_A[most_N] = torch.arange(len(most_N), device=most_N.device)
    chosen_M = place_A[pair_M] >= 0
    # Only the users in the matrix get a column: the table of users may be far larger.
    judge_V, column_M = torch.unique(row_M[chosen_M], return_inverse=True)
    cell_M, sign_M = (place_A[pair_M[chosen_M]], column_M), sign_M[chosen_M]
    none_NV = sign_M.new_zeros(len(most_N), len(judge_V))
    # Sums of ones are exact, so their order does not matter.
    vote_NV = none_NV.index_put(cell_M, sign_M, accumulate=True)
    count_NV = none_NV.index_put(cell_M, sign_M.abs(), accumulate=True)
    judged_NV = complete(0.5 * vote_NV / count_NV.clamp_min(1), count_NV > 0, bases)
    left_NN, size_N, right_NV = torch.linalg.svd(judged_NV, full_matrices=False)
    root_K = (SLOPE * size_N[:bases]).sqrt()
    weights_UK = sign_M.new_zeros(users, bases)
    weights_UK[judge_V, : len(root_K)] = right_NV[:bases].mT * root_K
    target_NK = sign_M.new_zeros(len(most_N), bases)
    target_NK[:, : len(root_K)] = left_NN[:, :bases] * root_K
    known_U = torch.zeros(users, dtype=torch.bool, device=row_M.device)
    known_U[judge_V] = True
    return Factors(key_A[most_N], target_NK, weights_UK, known_U)


def complete(judged_NU: Tensor, known_NU: Tensor, rank: int) -> Tensor:
    """Return judgements in [−½, ½] whose missing entries are those of a low-rank reconstruction."""
    if judged_NU.shape[0] > judged_NU.shape[1]:
        return complete(judged_NU.mT, known_NU.mT, rank).mT
    filled_NU = judged_NU
    for _ in range(COMPLETIONS):
        # The leading left singular vectors of a wide matrix are eigenvectors of its small Gram matrix.
        leading_NK = torch.linalg.eigh(filled_NU @ filled_NU.mT).eigenvectors[:, -rank:]
        reconstructed_NU = leading_NK @ (leading_NK.mT @ filled_NU)
        filled_NU = torch.where(known_NU, judged_NU, reconstructed_NU.clamp(-0.5, 0.5))
    return filled_NU


def name(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return key_BP, which names a pair of items in either order, and sign_BP, which tells the orders apart.

    Items are told apart by every bit of their embeddings, through a 64-bit hash.
    """
    chosen_BP, rejected_BP = fingerprint(pairs.chosen_BPD), fingerprint(pairs.rejected_BPD)
    low_BP, high_BP = torch.minimum(chosen_BP, rejected_BP), torch.maximum(chosen_BP, rejected_BP)
    sign_BP = torch.where(chosen_BP < rejected_BP, 1.0, -1.0)
    return low_BP * MULTIPLIER + high_BP, sign_BP


def fingerprint(emb_ND: Tensor) -> Tensor:
    """Return a 64-bit integer of each embedding's exact bits; integer sums wrap, and so do not round."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[emb_ND.element_size()]
    bits_ND = emb_ND.contiguous().view(integers).long()
    power_D = torch.full((emb_ND.shape[-1],), MULTIPLIER, device=emb_ND.device).cumprod(0)
    return (bits_ND * power_D).sum(-1)
