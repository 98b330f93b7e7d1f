"""Train the context-bound model: `python -m benchmarks.context.train --seed 0 --folder runs/dense`.

Interrupt it whenever you like and call it again with the same folder: it goes on where the last
checkpoint was. Every step draws its pictures from a generator seeded by run and step, so that a run
broken off sees what an unbroken one sees. `torchrun --nproc_per_node 2 -m` in the
place of `python -m` trains one model on two cores; the batch is that of each process.

B pictures, N tokens, C channels of x_t, K kinds.
"""

import argparse
import copy
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.transformers import transformer_flux
from torch import Generator, Tensor
from tqdm import tqdm

from hilotoken.train.parallel import average_gradients, processes

from .model import ContextModel, load, save, tokens_of
from .pictures import BROAD, GRID, KINDS, draw, enlarge

RATE, WARM = 2e-3, 50
# Tokens a side, and the share of the training by which that is over: small pictures cost less, and
# what they teach holds in large ones, since places are told by how far apart they are.
SIZES = ((8, 0.3), (12, 0.75), (GRID, 1.0))
AFTER = 0.6  # how far in this course a run begins that goes on from trained weights
HELD_OUT = 32  # pictures a kind that the learning curve is measured on
READABLE = 0.9  # a noise level out of which a broad context can be read, and a mask hardly
SOLVED = 0.04  # mean squared error in the mask: 20 dB of a range of 2


class Batch:
    """Pictures as the transformer takes them, at noise levels of their own."""

    def __init__(
        self,
        model: ContextModel,
        kinds_B: Tensor,
        sigma_B: Tensor,
        generator: Generator,
        grid: int = GRID,
    ) -> None:
        counts = torch.bincount(kinds_B, minlength=len(model.kinds)).tolist()
        drawn = [draw(k, n, generator, grid) for k, n in zip(model.kinds, counts, strict=True) if n]
        self.kinds_B = kinds_B.sort().values
        self.x0_BNC = tokens_of(torch.cat([p.image_B3HW for p in drawn]))
        mask_Bhw = torch.cat([p.mask_Bhw for p in drawn])
        self.mask_BN = mask_Bhw.flatten(1).float()
        self.sigma_B = sigma_B
        noise_BNC = torch.randn(self.x0_BNC.shape, generator=generator)
        s = sigma_B[:, None, None]
        self.x_BNC = (1 - s) * self.x0_BNC + s * noise_BNC
        masked_BNC = self.x0_BNC * (1 - self.mask_BN[..., None])
        holes_BNP = tokens_of(enlarge(mask_Bhw)[:, None].float())
        beside_BND = torch.cat([masked_BNC, holes_BNP], -1)
        self.beside_BND = beside_BND if model.shown else beside_BND[..., :0]
        at = torch.arange(grid).float()
        self.places_N3 = torch.stack(
            [torch.zeros(grid**2), at.repeat_interleave(grid), at.repeat(grid)], 1
        )

    def clean(self, model: ContextModel, keep_N: Tensor | None = None) -> Tensor:
        """The clean tokens that the model says; only those of `keep_N`, where it is given."""
        keep_N = torch.arange(len(self.places_N3)) if keep_N is None else keep_N
        x_BNC = self.x_BNC[:, keep_N]
        velocity_BNC = model.transformer(
            torch.cat([x_BNC, self.beside_BND[:, keep_N]], -1),
            encoder_hidden_states=model.text_KLD[self.kinds_B],
            pooled_projections=model.pooled_KD[self.kinds_B],
            timestep=self.sigma_B,
            img_ids=self.places_N3[keep_N],
            txt_ids=torch.zeros(model.text_KLD.shape[1], 3),
        )[0]
        return x_BNC - self.sigma_B[:, None, None] * velocity_BNC


def error_in_mask(clean_BNC: Tensor, x0_BNC: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean squared error over the hidden tokens of each picture, [B]."""
    error_BN = (clean_BNC - x0_BNC).square().mean(2)
    return (error_BN * mask_BN).sum(1) / mask_BN.sum(1).clamp_min(1)


class Run:
    """One training, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        samples: int,
        batch: int,
        drop: tuple[float, float] = (0.0, 0.0),
        begin: str = "",
        kinds: Sequence[str] = (),
        shown: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        self.folder, self.seed, self.goal, self.batch = folder, seed, samples, batch
        self.team = processes(torch.device("cpu"))
        self.drop, self.after = drop, AFTER if begin else 0.0
        self.model = load(begin).train() if begin else ContextModel(shown)
        self.names = self.model.kinds
        self.drawn_K = torch.tensor([name in (kinds or self.names) for name in self.names])
        self.average = copy.deepcopy(self.model).eval()
        self.optimizers = _optimizers(self.model)
        self.step, self.samples, self.log = 0, 0, []
        self.error_K = torch.ones(len(self.names))
        held_out = Generator().manual_seed(10**6)
        kinds_B = torch.arange(len(self.names)).repeat_interleave(HELD_OUT)
        sigma_B = torch.full((len(kinds_B),), 1.0 if self.model.shown else READABLE)
        self.held_out = Batch(self.model, kinds_B, sigma_B, held_out)

    def go(self, every: int) -> None:
        """Train to the end, with a checkpoint and a line of the curve every so many steps."""
        self._load()
        first = self.team.is_main_process
        bar = tqdm(
            total=self.goal,
            initial=self.samples,
            unit="sample",
            mininterval=20,
            disable=not first,
        )
        while self.samples < self.goal:
            self._one_step()
            bar.update(self.batch * self.team.num_processes)
            if first and (self.step % every == 0 or self.samples >= self.goal):
                self.log += self._curve()
                self._save()
                solved = {r["kind"]: r["solved"] for r in self.log[-len(self.names) :]}
                bar.write(f"{self.samples} samples; solved: {solved}")
        bar.close()
        if first:
            save(self.average, self.folder / "model.safetensors")

    @property
    def _done(self) -> float:
        """How far the run is in its course, from 0 to 1."""
        return self.after + (1 - self.after) * self.samples / self.goal

    def _one_step(self) -> None:
        own = 10**7 * (self.seed + 1) + 10**6 * self.team.process_index
        generator = Generator().manual_seed(own + self.step)
        grid = next(grid for grid, end in SIZES if self._done < end)
        # What is learned already is drawn less often.
        share_K = self.drawn_K * (0.15 + (self.error_K / 0.1).clamp(max=1))
        kinds_B = torch.multinomial(share_K, self.batch, replacement=True, generator=generator)
        sigma_B = _noise_levels(self.batch, generator, self.model.shown)
        batch = Batch(self.model, kinds_B, sigma_B, generator, grid)
        keep_N = self._kept(batch.x0_BNC.shape[1], generator)
        with _explicit_attention(), torch.autocast("cpu", torch.bfloat16):
            clean_BNC = batch.clean(self.model, keep_N)
        x0_BNC, mask_BN = batch.x0_BNC[:, keep_N], batch.mask_BN[:, keep_N]
        error_B = error_in_mask(clean_BNC, x0_BNC, mask_BN)
        # Visible tokens too: they teach the last layer what a picture is.
        loss = (error_B / batch.sigma_B.clamp_min(0.25).square()).mean()
        loss = loss + 0.5 * (clean_BNC - x0_BNC).square().mean()
        self._update(loss)
        for k in range(len(self.names)):
            if (mine_B := batch.kinds_B == k).any():
                self.error_K[k].lerp_(error_B.detach()[mine_B].mean(), 0.02)

    def _kept(self, tokens: int, generator: Generator) -> Tensor:
        low, high = self.drop
        share = low + (high - low) * float(torch.rand((), generator=generator))
        count = tokens - round(share * tokens)
        return torch.randperm(tokens, generator=generator)[:count].sort().values

    def _update(self, loss: Tensor) -> None:
        slower = min(1, max(0.02, 2 * (1 - self._done)))
        rate = RATE * min(1, (self.step + 1) / WARM) * slower
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        seen = average_gradients(self.model, self.batch, self.team)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step, self.samples = self.step + 1, self.samples + seen
        new = max(0.002, 1 / (0.1 * self.step + 1))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), new
            )

    @torch.inference_mode()
    def _curve(self) -> list[dict[str, Any]]:
        """Of each kind, in one call from one noise level: error in the mask, and share solved."""
        with torch.autocast("cpu", torch.bfloat16):
            clean_BNC = self.held_out.clean(self.average)
        error_KB = error_in_mask(clean_BNC, self.held_out.x0_BNC, self.held_out.mask_BN)
        error_KB = error_KB.unflatten(0, (len(self.names), HELD_OUT))
        return [
            {
                "samples": self.samples,
                "kind": name,
                "error": round(float(error_B.mean()), 5),
                "solved": round(float((error_B < SOLVED).float().mean()), 3),
                "drawn_error": round(float(self.error_K[k]), 5),
            }
            for k, (name, error_B) in enumerate(zip(self.names, error_KB, strict=True))
        ]

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name) for name in ("step", "samples", "error_K", "log")}
        state |= {"model": self.model.state_dict(), "average": self.average.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state, self.folder / "new.pt")
        (self.folder / "new.pt").replace(self.folder / "state.pt")
        with open(self.folder / "curve.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(self.log[0]))
            writer.writeheader()
            writer.writerows(self.log)

    def _load(self) -> None:
        file = self.folder / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for name in ("step", "samples", "error_K", "log"):
            setattr(self, name, state[name])


def _optimizers(model: ContextModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    named = dict(model.named_parameters())
    matrices = [
        p for n, p in named.items() if p.ndim == 2 and "transformer_blocks" in n and "norm" not in n
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in named.values() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=RATE, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _noise_levels(count: int, generator: Generator, shown: bool) -> Tensor:
    """Pure noise for four in ten, where the far context is all there is; else nearer to it.

    A model that sees x_t alone learns nothing from pure noise: for it, levels of all kinds.
    """
    if not shown:
        return torch.sigmoid(1 + 1.5 * torch.randn(count, generator=generator))
    spread_B = torch.sigmoid(2 + torch.randn(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < 0.4, 1.0, spread_B)


def _explicit_attention() -> Any:
    """Attention as two matrix products: on a CPU its way back is faster than the fused kernel's."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        weights = (query * query.shape[-1] ** -0.5) @ key.mT
        return (weights.softmax(-1, dtype=weights.dtype) @ value).transpose(1, 2)

    return patch.object(transformer_flux, "dispatch_attention_fn", attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, curve, weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=150_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--drop", type=float, nargs=2, default=(0.0, 0.0), help="share of tokens left out, from to"
    )
    parser.add_argument("--begin", default="", help="trained weights to go on from, by name")
    parser.add_argument(
        "--kinds", nargs="+", choices=[*KINDS, *BROAD], default=(), help="all unless given"
    )
    parser.add_argument("--noised", action="store_true", help="a model that sees x_t alone")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    given = parser.parse_args()
    try:
        options = tuple(given.drop), given.begin, given.kinds, not given.noised
        run = Run(given.folder, given.seed, given.samples, given.batch, *options)
        run.go(given.every)
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on from {given.folder}")


if __name__ == "__main__":
    main()
