"""Token Pooling: cluster the tokens and go on with the centres (arXiv 2110.03860).

B batch, N tokens, K clusters, C channels. The grid plays no part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.matching import sum_slots, take, widen
from ..blocks.method import Merging, MergingSession, Short, Site, identity
from ..checks import choice, settle, whole

SIGNIFICANCE = ("one", "key", "attention")


@dataclass(frozen=True, kw_only=True)
class TokenPooling(Merging):
    """Tokens run as the centres of their clusters, and take their centre's output back.

    kind:         "means" or "medoids", see `cluster`; by the block's modulated norm
    iterations:   rounds of clustering
    significance: what a token weighs: "one"; "key", the norm of its keys; or "attention", what it
                  receives over all heads and queries, as the paper has it. Both are those of the
                  block before, the first block's one each; attention is computed again, unfused

    Departures: the paper pools after attention, for good, in a network tuned for it. Here, where
    nothing is tuned, tokens come back after each module. A cluster sits at the place of its token
    nearest to the centre; one that no token joined stands as a copy of the token it began with.
    """

    kind: str = "means"
    iterations: int = 5
    significance: str = "one"

    def __post_init__(self) -> None:
        super().__post_init__()
        significance = choice(*SIGNIFICANCE)
        settle(self, kind=choice(*KINDS), iterations=whole(1), significance=significance)
        if self.ratio == 1:
            raise ValueError("ratio must lie in [0, 1), got 1: one cluster at least must be left")

    def session(self) -> "TokenPoolingSession":
        return TokenPoolingSession(self)


class TokenPoolingSession(MergingSession):
    def __init__(self, method: TokenPooling) -> None:
        super().__init__(method)
        self.method = method
        self.weight: dict[int, Tensor] = {}  # by branch, of the attention before

    def make(self, at: Site, normed_BNC: Tensor) -> Short:
        removed = self.method.removed(at.tokens, at.tokens.count - 1)
        if not removed:
            return identity(at.tokens.count, normed_BNC)
        weight_BN = self.weight.get(at.branch)
        clusters, method = at.tokens.count - removed, self.method
        return _pool(normed_BNC, clusters, weight_BN, method.kind, method.iterations)

    def attended(
        self, at: Site, query_BQHD: Tensor, key_BSHD: Tensor, image: slice, short: Short | None
    ) -> None:
        if self.method.significance == "one":
            return
        if self.method.significance == "key":
            weight_BM = key_BSHD[:, image].float().norm(dim=-1).sum(-1)
        else:
            weight_BM = _received(query_BQHD, key_BSHD)[:, image]
        if isinstance(short, Pool):  # what a centre receives is shared out among its tokens
            weight_BM = weight_BM / short.count_BM.clamp_min(1)
        self.weight[at.branch] = short.unmerge(weight_BM[..., None])[..., 0] if short else weight_BM


def _received(query_BQHD: Tensor, key_BSHD: Tensor) -> Tensor:
    """The attention each key receives, summed over heads and queries: float32 [B, S]."""
    received_BS = torch.zeros(key_BSHD.shape[:2], device=key_BSHD.device)
    for head in range(query_BQHD.shape[2]):  # all heads at once would take H times the memory
        logits = query_BQHD[:, :, head].float() @ key_BSHD[:, :, head].float().mT
        received_BS += (logits * query_BQHD.shape[-1] ** -0.5).softmax(-1).sum(1)
    return received_BS


@dataclass(frozen=True, eq=False)
class Pool:
    """Clusters as a way to make tokens fewer: see `Short`.

    slot_BN:   the cluster of each token
    home_BM:   the token at whose place each cluster stands
    weight_BN: what each token weighs in its cluster; None for clusters that are their home token
    """

    slot_BN: Tensor
    home_BM: Tensor
    weight_BN: Tensor | None

    @property
    def count_BM(self) -> Tensor:
        """How many tokens are in each cluster; next to none for an empty one, a token's copy."""
        ones_BN1 = torch.ones_like(self.slot_BN, dtype=torch.float32)[..., None]
        return sum_slots(ones_BN1, self.slot_BN, self.home_BM.shape[1])[..., 0].clamp_min(1e-6)

    def merge(self, x_BNC: Tensor) -> Tensor:
        own_BMC = take(x_BNC, self.home_BM)
        if self.weight_BN is None:
            return own_BMC
        M, weight_BN1 = self.home_BM.shape[1], self.weight_BN[..., None]
        total_BMC = sum_slots(widen(x_BNC) * weight_BN1, self.slot_BN, M)
        mass_BM1 = sum_slots(weight_BN1, self.slot_BN, M)
        mean_BMC = total_BMC / mass_BM1.masked_fill(mass_BM1 == 0, 1)
        return torch.where(mass_BM1 > 0, mean_BMC.to(x_BNC.dtype), own_BMC)

    def unmerge(self, y_BMC: Tensor) -> Tensor:
        return take(y_BMC, self.slot_BN)


def pool(x: Tensor, *, clusters: int, weights: Tensor | None, kind: str, iterations: int) -> Pool:
    """Cluster the tokens, and find for each cluster the token nearest to its centre.

    Arguments and errors are those of `cluster`.
    """
    _check(x, clusters, weights, kind, iterations)
    return _pool(x, clusters, weights, kind, iterations)


def _pool(x: Tensor, clusters: int, weights: Tensor | None, kind: str, iterations: int) -> Pool:
    slot_BN, centres_BKC = _cluster(x, clusters, weights, kind, iterations)
    tokens_BNC = widen(x)
    weight_BN = _weights(weights, tokens_BNC)
    away_BN = (tokens_BNC - take(widen(centres_BKC), slot_BN)).square().sum(-1)
    (B, N), K = away_BN.shape, clusters
    least_BK = away_BN.new_full((B, K), math.inf).scatter_reduce(1, slot_BN, away_BN, "amin")
    place_BN = torch.arange(N, device=x.device).expand(B, -1)
    # Two tokens are equally far from their mean: rounding must not choose between them.
    near_BN = 1.0001 * least_BK.gather(1, slot_BN)
    rival_BN = place_BN.masked_fill(away_BN > near_BN, N)
    nearest_BK = torch.full_like(slot_BN[:, :K], N).scatter_reduce(1, slot_BN, rival_BN, "amin")
    home_BK = torch.where(nearest_BK < N, nearest_BK, _heaviest(weight_BN, K))
    return Pool(slot_BN, home_BK, weight_BN if kind == "means" else None)


def cluster(
    x: Tensor,
    *,
    clusters: int,
    weights: Tensor | None = None,
    kind: str = "means",
    iterations: int = 5,
) -> tuple[Tensor, Tensor]:
    """Centres that stand for all tokens: minimise sum_i w_i min_j |x_i - c_j| by Lloyd's iteration.

    For `means` the distance is squared and c_j = sum_i w_i x_i / sum_i w_i over the tokens of
    cluster j. For `medoids` it is plain and c_j is the token of the cluster from which the sum of
    w_i times the distance to each of the cluster's tokens is smallest.

    Centres start at the heaviest tokens, in the order of their place: as many clusters as tokens is
    the identity. The lowest index settles every tie, so that without weights the first K tokens are
    the start. A cluster of no tokens, or of no weight, keeps its centre. We know of no code by the
    authors; a third-party port sums a medoid's distances over *all* tokens and multiplies them by
    the candidate's own weight, so that heavy tokens are avoided.

    Args:
        x: tokens
        clusters: K, in [1, N]
        weights: [B, N], 0 or more, the significance of each token: in the paper the attention it
            receives, over all heads and queries; None for 1 each
        kind: "means" or "medoids"
        iterations: rounds of assignment and update, 1 or more

    Returns:
        The assignment, int64 [B, N], and the centres, [B, K, C]. The assignment is the one the
        centres were last updated from: a mean is the mean of the tokens assigned to it. To unmerge,
        a token takes its centre's output.

    Raises:
        ValueError: tokens that are not [B, N, C], clusters outside [1, N], weights of another shape
            or negative or not finite, an unknown kind, iterations below 1.
    """
    _check(x, clusters, weights, kind, iterations)
    return _cluster(x, clusters, weights, kind, iterations)


def _check(x: Tensor, clusters: int, weights: Tensor | None, kind: str, iterations: int) -> None:
    """Raise ValueError for arguments that `cluster` does not take; the host reads the weights."""
    if x.ndim != 3:
        raise ValueError(f"tokens must have shape [B, N, C], got {list(x.shape)}")
    N = x.shape[1]
    if not 1 <= clusters <= N:
        raise ValueError(f"clusters must lie in [1, {N}], the tokens, got {clusters}")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose from {sorted(KINDS)}")
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")
    if weights is None:
        return
    if weights.shape != x.shape[:2]:
        B, N, _ = x.shape
        raise ValueError(f"weights must have shape [{B}, {N}], got {list(weights.shape)}")
    low, high = (bound.item() for bound in torch.aminmax(weights))
    if not (low >= 0 and high < math.inf):  # one NaN makes both bounds NaN
        raise ValueError(f"weights must be finite and 0 or more, got values from {low} to {high}")


def _cluster(
    x: Tensor, clusters: int, weights: Tensor | None, kind: str, iterations: int
) -> tuple[Tensor, Tensor]:
    tokens_BNC = widen(x)
    weight_BN = _weights(weights, tokens_BNC)
    start_BK = _heaviest(weight_BN, clusters)
    assignment_BN, centres_BKC = KINDS[kind](tokens_BNC, weight_BN, start_BK, iterations)
    return assignment_BN, centres_BKC.to(x.dtype)


def _heaviest(weight_BN: Tensor, count: int) -> Tensor:
    """The tokens of greatest weight, in the order of their place: int64 [B, count]."""
    falling_BN = weight_BN.argsort(dim=1, descending=True, stable=True)
    return falling_BN[:, :count].sort(dim=1).values


def _means(
    x_BNC: Tensor, weight_BN: Tensor, start_BK: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    assignment_BN, centres_BKC = start_BK, take(x_BNC, start_BK)
    for _ in range(iterations):
        assignment_BN = _squared_distance(x_BNC, centres_BKC).argmin(-1)
        total_BKC = sum_slots(x_BNC * weight_BN[..., None], assignment_BN, start_BK.shape[1])
        mass_BK1 = sum_slots(weight_BN[..., None], assignment_BN, start_BK.shape[1])
        # Dividing by 0 and choosing the other branch would still make gradients NaN.
        mean_BKC = total_BKC / mass_BK1.masked_fill(mass_BK1 == 0, 1)
        centres_BKC = torch.where(mass_BK1 > 0, mean_BKC, centres_BKC)
    return assignment_BN, centres_BKC


def _medoids(
    x_BNC: Tensor, weight_BN: Tensor, start_BK: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    assignment_BN, index_BK, N = start_BK, start_BK, x_BNC.shape[1]
    place_BN = torch.arange(N, device=x_BNC.device).expand_as(weight_BN)
    distance_BNN = _squared_distance(x_BNC, x_BNC).sqrt()
    # Both tokens of a pair cost the same: rounding must not choose between them.
    distance_BNN = torch.maximum(distance_BNN, distance_BNN.mT)
    distance_BNN.diagonal(dim1=1, dim2=2).zero_()
    for _ in range(iterations):
        to_centre_BKN = distance_BNN.gather(1, index_BK[..., None].expand(-1, -1, N))
        assignment_BN = to_centre_BKN.argmin(1)
        apart_BNN = assignment_BN[:, :, None] != assignment_BN[:, None]
        cost_BN = (distance_BNN * weight_BN[:, None]).masked_fill(apart_BNN, 0).sum(-1)
        least_BK = torch.full_like(index_BK, math.inf, dtype=cost_BN.dtype)
        least_BK = least_BK.scatter_reduce(1, assignment_BN, cost_BN, "amin")
        rival_BN = place_BN.masked_fill(cost_BN > least_BK.gather(1, assignment_BN), N)
        medoid_BK = torch.full_like(index_BK, N).scatter_reduce(1, assignment_BN, rival_BN, "amin")
        mass_BK1 = sum_slots(weight_BN[..., None], assignment_BN, index_BK.shape[1])
        index_BK = torch.where(mass_BK1[..., 0] > 0, medoid_BK, index_BK)
    return assignment_BN, take(x_BNC, index_BK)


def _squared_distance(x_BNC: Tensor, y_BKC: Tensor) -> Tensor:
    # By way of a matrix product, 15 to 25 times as fast as the differences. A shift leaves all
    # distances as they are, and short vectors lose less to rounding.
    origin_B1C = x_BNC[:, :1].detach()
    x_BNC, y_BKC = x_BNC.detach() - origin_B1C, y_BKC.detach() - origin_B1C
    length_BNK = x_BNC.square().sum(-1)[:, :, None] + y_BKC.square().sum(-1)[:, None]
    return (length_BNK - 2 * x_BNC @ y_BKC.mT).clamp_min(0)


def _weights(weights: Tensor | None, x_BNC: Tensor) -> Tensor:
    return x_BNC.new_ones(x_BNC.shape[:2]) if weights is None else weights.to(x_BNC.dtype)


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "means": _means,
    "medoids": _medoids,
}
