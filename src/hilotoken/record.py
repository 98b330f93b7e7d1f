"""What a call leaves behind: `fast.last_run`."""

from dataclasses import dataclass, field
from typing import Any

from .plan import TokenPlan


@dataclass(frozen=True, eq=False)
class Run:
    """The record of one call: its plan, and seconds by part.

    steps:    steps of the scheduler; guidance by a second prompt calls the DiT twice in each
    sequence: image tokens of a call, references included: all of them, and those that ran
    inside:   of a method that acts inside blocks: the mean share of the sequence's tokens that
              queries, keys and the feed-forward ran on
    refreshed: the steps at which context ran, where a method reuses it; None for all
    kept_bytes: memory that its keys and values took
    blocks_run: share of the blocks that ran, where a step cache skips some
    decoded: share of the latents that were decoded, where a region is enough
    """

    plan: TokenPlan
    method: Any
    steps: int
    sequence: tuple[int, int]
    plan_seconds: float
    dit_seconds: float
    vae_seconds: float
    total_seconds: float
    inside: dict[str, float] = field(default_factory=dict)
    refreshed: tuple[int, ...] | None = None
    kept_bytes: int = 0
    blocks_run: float = 1.0
    decoded: float = 1.0

    @property
    def tokens_full(self) -> int:
        return self.plan.tokens_full

    @property
    def tokens_run(self) -> int:
        return self.plan.tokens_run

    @property
    def keep_ratio(self) -> float:
        return self.plan.keep_ratio

    @property
    def mean_tokens_run(self) -> float:
        """Tokens of the grid that ran, over steps and blocks: fewer where some are reused."""
        if self.refreshed is None:
            return self.blocks_run * self.tokens_run
        share = len(self.refreshed) / max(1, self.steps)
        return share * self.tokens_run + (1 - share) * self.counts["edit"]

    @property
    def counts(self) -> dict[str, int]:
        return self.plan.counts

    @property
    def rest_seconds(self) -> float:
        """Neither DiT nor VAE: text encoders, scheduler, planning, compositing."""
        return self.total_seconds - self.dit_seconds - self.vae_seconds
