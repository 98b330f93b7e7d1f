"""What a call leaves behind: `fast.last_run`."""

import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from statistics import fmean
from typing import Any

from torch import Tensor

from .plan import TokenPlan


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """The record of one call: its plan, and seconds by part. Printed it is one line.

    steps:    steps of the scheduler; guidance by a second prompt calls the DiT twice in each
    sequence: image tokens of a call, references included: all of them, and those that ran
    inside:   of a method that acts inside blocks: the mean share of the sequence's tokens that
              queries, keys and the feed-forward ran on
    refreshed: the steps at which context ran, where a method reuses it; None for all
    between:  tokens of the grid that ran at the other steps
    kept_bytes: memory that its keys and values took
    blocks_run: share of the blocks that ran, where a step cache skips some
    decoded: share of its work that the decoder did, where a region is enough
    decode_error: of an approximate decode, how far in the mask it was from the whole, at the first
             decode of this autoencoder in this process: root mean square, in levels of 255
    encoded: share of its work that the encoder did, where the rest was known
    reused:  in a session, what was taken from it: shares of the "latents" encoded, of the
             "prompts", and of the "context" at refreshes
    mask:    [B, 1, H, W] in the pipeline's pixels: whose pixels are the run's; the mask that was
             given, or the region found. None where the whole picture is made
    searched: whether the region was to be found
    reasons: then, why every token ran, and why none of the photo was put back
    plans:   of a batch in which photos or masks differ, the plan of each picture; `plan` is the
             first, and counts of tokens are means over all
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
    between: int = 0
    blocks_run: float = 1.0
    decoded: float = 1.0
    decode_error: float | None = None
    encoded: float = 1.0
    reused: dict[str, float] = field(default_factory=dict)
    mask: Tensor | None = None
    searched: bool = False
    reasons: tuple[str, ...] = ()
    plans: tuple[TokenPlan, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "plans", self.plans or (self.plan,))

    @property
    def tokens_full(self) -> int:
        return self.plan.tokens_full

    @property
    def tokens_run(self) -> int:
        return round(fmean(plan.tokens_run for plan in self.plans))

    @property
    def keep_ratio(self) -> float:
        return fmean(plan.keep_ratio for plan in self.plans)

    @property
    def mean_tokens_run(self) -> float:
        """Tokens of the grid that ran, over steps and blocks: fewer where some are reused."""
        if self.refreshed is None:
            return self.blocks_run * self.tokens_run
        edit, lent = self.counts["edit"], self.reused.get("context", 0.0)
        share = len(self.refreshed) / max(1, self.steps)
        refresh = (1 - lent) * self.tokens_run + lent * edit
        return share * refresh + (1 - share) * self.between

    @property
    def counts(self) -> dict[str, int]:
        """How many edit, detail and coarse tokens run."""
        each = [plan.counts for plan in self.plans]
        return {kind: round(fmean(counts[kind] for counts in each)) for kind in each[0]}

    def of_picture(self, number: int, pictures: int) -> "Run":
        """The record of one of so many pictures that were made together: its share of the time."""
        if pictures == 1:
            return self
        names = ("plan_seconds", "dit_seconds", "vae_seconds", "total_seconds")
        own: dict[str, Any] = {name: getattr(self, name) / pictures for name in names}
        if len(self.plans) == pictures:
            own |= {"plan": self.plans[number], "plans": (self.plans[number],)}
        if self.mask is not None:
            own["mask"] = self.mask[number % len(self.mask)][None]
        return replace(self, **own)

    @property
    def rest_seconds(self) -> float:
        """Neither DiT nor VAE: text encoders, scheduler, planning, compositing."""
        return self.total_seconds - self.dit_seconds - self.vae_seconds

    def as_dict(self) -> dict[str, Any]:
        """The record in what JSON knows: figures, and the method by its name and options."""
        named = ("plan", "dit", "vae", "rest", "total")
        return {
            "method": described(self.method),
            "steps": self.steps,
            "grid": list(self.plan.grid),
            "tokens_full": self.tokens_full,
            "tokens_run": self.tokens_run,
            "mean_tokens_run": self.mean_tokens_run,
            "keep_ratio": self.keep_ratio,
            "tokens": self.counts,
            "plans": [plan.counts for plan in self.plans],
            "sequence": list(self.sequence),
            **{f"{part}_seconds": getattr(self, f"{part}_seconds") for part in named},
            "inside": dict(self.inside),
            "refreshed": None if self.refreshed is None else list(self.refreshed),
            "kept_bytes": self.kept_bytes,
            "blocks_run": self.blocks_run,
            "decoded": self.decoded,
            "decode_error": self.decode_error,
            "encoded": self.encoded,
            "reused": dict(self.reused),
            "masked": None if self.mask is None else (self.mask > 0).float().mean().item(),
            "searched": self.searched,
            "reasons": list(self.reasons),
        }

    def __str__(self) -> str:
        run = self.mean_tokens_run
        share = f"{run:.0f} of {self.tokens_full} tokens a step ({run / self.tokens_full:.0%})"
        steps = f"{self.steps} step{'s' if self.steps != 1 else ''}"
        if self.refreshed is not None:
            steps += f", context at {', '.join(map(str, self.refreshed))}"
        inside = [f"{part} {share:.0%}" for part, share in self.inside.items()]
        if self.blocks_run < 1:
            inside.append(f"blocks {self.blocks_run:.0%}")
        if self.decode_error is not None:
            inside.append(f"decoded to {self.decode_error:.2g} of 255 levels")
        seconds = f"DiT {self.dit_seconds:.2f} s, VAE {self.vae_seconds:.2f} s"
        parts = [
            share,
            steps,
            *inside,
            *self.reasons,
            seconds,
            f"in all {self.total_seconds:.2f} s",
        ]
        return f"{brief(self.method)}: {'; '.join(parts)}"

    def __repr__(self) -> str:
        return f"<Run {self}>"


def described(method: Any) -> dict[str, Any]:
    """A method's name and all its options, as JSON knows them."""
    options = {one.name: getattr(method, one.name) for one in _options(method)}
    known = json.loads(json.dumps(options, default=_plain))
    return {"name": type(method).__name__, "options": known}


def brief(method: Any) -> str:
    """A method's name and those of its options that are not as they are by default."""
    try:
        default = type(method)()
    except TypeError:  # it has options without a default
        default = None
    told = [
        f"{one.name}={brief(value) if is_dataclass(value) else repr(value)}"
        for one in _options(method)
        if (value := getattr(method, one.name)) != getattr(default, one.name, None)
    ]
    return f"{type(method).__name__}({', '.join(told)})"


def _options(method: Any) -> tuple[Any, ...]:
    return fields(method) if is_dataclass(method) else ()


def _plain(value: Any) -> Any:
    return described(value) if is_dataclass(value) else str(value)
