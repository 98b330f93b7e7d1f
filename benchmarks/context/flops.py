"""FLOPs of a transformer of FLUX's class, counted from its shape: two for each multiply-add.

`tests/test_context_model.py` holds this against the counted FLOPs of real calls. With it the cost
of a setting can be told at the size of FLUX.1, which no small machine runs.

L text tokens, S image tokens that run, X tokens whose keys are kept, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hilotoken.method import Method
from hilotoken.methods.refresh import refresh_steps
from hilotoken.plan import TokenPlan


@dataclass(frozen=True)
class Shape:
    """Blocks, width and channels of a transformer of FLUX's class."""

    double: int
    single: int
    width: int
    heads: int
    text: int  # tokens
    channels_in: int
    channels_out: int
    text_channels: int
    pooled_channels: int
    guidance: bool

    def call(self, run: int, kept: int = 0, text: bool = True, weighted: bool = False) -> int:
        """FLOPs of one call.

        Args:
            run: image tokens
            kept: keys besides, kept from another call
            text: whether text runs
            weighted: whether keys count for many, which takes 8 channels more a head
        """
        D, L = self.width, self.text if text else 0
        tokens = run + L
        attention = 4 * tokens * (tokens + kept) * (D + 8 * self.heads * weighted)
        # Of a token: query, key, value and output 4 D^2, feed-forward 8 D^2; two for multiply-add.
        block = 24 * tokens * D * D + attention
        modulated = self.double * 12 * D * D + self.single * 3 * D * D + 2 * D * D
        ends = run * (self.channels_in + self.channels_out) + L * self.text_channels
        embedded = (256 * D + D * D) * (1 + self.guidance) + self.pooled_channels * D + D * D
        return (self.double + self.single) * block + 2 * (modulated + ends * D + embedded)

    def edit(self, plan: TokenPlan, method: Method, sigmas: Sequence[float]) -> int:
        """FLOPs of all steps under a plan, context reused where the method says so."""
        whole = self.call(plan.tokens_run, weighted=plan.weighted)
        refresh = method.refresh
        if refresh is None:
            return len(sigmas) * whole
        due = len(refresh_steps(refresh.at, sigmas))
        edited = plan.counts["edit"]
        context = round(getattr(method, "share", 1) * (plan.tokens_run - edited))
        kept = context + (self.text if refresh.text else 0)
        between = self.call(edited, kept, not refresh.text, plan.weighted)
        if hasattr(method, "share"):  # what is attended to is told by the logits, computed again
            blocks, keys = self.double + self.single, plan.tokens_run + self.text
            whole += 2 * blocks * edited * keys * self.width
        return due * whole + (len(sigmas) - due) * between

    def share(self, plan: TokenPlan, method: Method, sigmas: Sequence[float]) -> float:
        """FLOPs of an edit over the dense one's."""
        return self.edit(plan, method, sigmas) / (len(sigmas) * self.call(plan.tokens_full))


CONTEXT = Shape(1, 2, 128, 4, 4, 112, 48, 32, 32, False)
FLUX_FILL = Shape(19, 38, 3072, 24, 512, 384, 64, 4096, 768, True)
