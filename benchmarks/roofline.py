"""What bounds a step of FLUX.1 that reuses context: arithmetic, or reading the weights.

`python -m benchmarks.roofline` prints the tables of the page on speed. A roofline (Williams et al.,
2009): a step takes no less than its FLOPs at the card's published peak, and no less than the bytes
of its weights and of the keys and values kept at the published bandwidth. No card reaches either.

S tokens that run, text among them; K keys; D channels.
"""

from dataclasses import dataclass

import numpy as np

from hilotoken.bench.measure.speed import disc
from hilotoken.methods import HiLo, Refresh, plan_tokens

# FLUX.1: 19 double and 38 single blocks of 24 heads of 128 channels, in bfloat16.
D, BLOCKS, WEIGHTS, TEXT, SIDE = 3072, 57, 11.9e9 * 2, 512, 64
SHARES = (0.01, 0.03, 0.064, 0.159, 0.354)


@dataclass(frozen=True)
class Card:
    """Published peaks: bfloat16 without sparsity, summed in float32; memory."""

    name: str
    flops: float
    bytes: float


CARDS = (
    Card("H100 SXM", 989e12, 3.35e12),
    Card("H200", 989e12, 4.8e12),
    Card("RTX 4090", 165.2e12, 1.008e12),
)


@dataclass(frozen=True)
class Step:
    """A step that reuses context: tokens that run, and keys and values that are kept."""

    run: int
    kept: int

    def arithmetic(self, card: Card, batch: int = 1) -> float:
        """Seconds: `4 D S (6 D + K)` FLOPs a block, the projections of S and the attention to K."""
        keys = self.run + self.kept
        return batch * BLOCKS * 4 * D * self.run * (6 * D + keys) / card.flops

    def memory(self, card: Card, batch: int = 1) -> float:
        """Seconds: the weights once, whatever the tokens; what is kept once for every sample."""
        return (WEIGHTS + batch * BLOCKS * 2 * self.kept * D * 2) / card.bytes

    def least(self, card: Card, batch: int = 1) -> float:
        return max(self.arithmetic(card, batch), self.memory(card, batch))


def step_under(share: float, text_kept: bool) -> Step:
    """At 1024 px under a disc, context sampled: the `fast` preset, its text kept or not."""
    method = HiLo(context="sampled", detail=0.0, refresh=Refresh(2, text=text_kept))
    mask = disc(16 * SIDE, share).astype(np.float32)
    photo = np.zeros((*mask.shape, 3), np.float32)
    plan = plan_tokens(photo, mask, grid=(SIDE, SIDE), method=method)
    edit = plan.counts["edit"]
    context = plan.tokens_run - edit
    return Step(edit, context + TEXT) if text_kept else Step(edit + TEXT, context)


def balance(card: Card, kept: int = 1024) -> int:
    """The fewest tokens at which arithmetic takes as long as reading."""
    return next(n for n in range(1, 1 << 16) if _bound(Step(n, kept), card) == "arithmetic")


def _bound(step: Step, card: Card) -> str:
    return "arithmetic" if step.arithmetic(card) >= step.memory(card) else "memory"


def main() -> None:
    print("| card | bound by memory up to | dense step, arithmetic | reading the weights |")
    print("|---|--:|--:|--:|")
    dense = Step(SIDE * SIDE + TEXT, 0)
    for card in CARDS:
        figures = dense.arithmetic(card), WEIGHTS / card.bytes
        least, reading = (f"{1000 * seconds:.1f} ms" for seconds in figures)
        print(f"| {card.name} | {balance(card) - 1} tokens | {least} | {reading} |")
    print("\n| mask | text | tokens run | " + " | ".join(card.name for card in CARDS) + " |")
    print("|--:|---|--:|" + "---|" * len(CARDS))
    for kept in (True, False):
        for share in SHARES:
            step = step_under(share, kept)
            cells = []
            for card in CARDS:
                each = step.least(card, 4) / 4
                gain = step.least(card) / each
                bound = f"{1000 * step.least(card):.1f} ms, {_bound(step, card)}"
                cells.append(f"{bound}; four at once {gain:.1f}x")
            said = "kept" if kept else "runs"
            print(f"| {share:.1%} | {said} | {step.run} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
