"""`hilo bench memory`: what a preset needs on a GPU, predicted without one.

Models of true size are made on the meta device, where tensors have shapes and no values. Weights
are counted; the activations of a block and of the autoencoder's decoder are followed as they run,
storage by storage; kept keys and values follow from the plan. What a card's kernels want for
themselves, and what PyTorch's allocator loses between blocks of memory, is in neither: see MARGIN.

B batch, S tokens of a call, L of them text, D channels.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...attention import rerouted
from ...kv_store import kept_bytes
from ...methods import HiLo, plan_tokens, preset
from ...methods.refresh import Refresh
from .arch import Scale, _flux_vae
from .speed import disc

CARDS = (12, 16, 24, 48, 80)  # GB, as they are sold: 10**9 bytes
MARGIN = 1.5e9  # of a card, for its context, kernels' workspace and gaps between allocations
HALF = 2  # bytes of a number in bfloat16
TOKEN = 16  # pixels a side


@dataclass(frozen=True)
class Model:
    """A model at the size that it is published at.

    transformer: made on the meta device
    modulate:    from a block and the channels, what it is told of the time: its third argument on
    encoders:    parameters of the text encoders, as published
    branches:    calls of the transformer in a step, or samples in one, as guidance makes them
    """

    transformer: Callable[[], nn.Module]
    modulate: Callable[[int], Mapping[str, Tensor]]
    encoders: float
    branches: int
    text: int = 512
    text_rests: bool = False  # see `preset`


def _temb(channels: int) -> dict[str, Tensor]:
    return {"temb": torch.empty(1, channels)}


def _temb_flux2(channels: int) -> dict[str, Tensor]:
    return {name: torch.empty(1, 1, 6 * channels) for name in ("temb_mod_img", "temb_mod_txt")}


def _temb_qwen(channels: int) -> dict[str, Any]:
    return {"temb": torch.empty(1, channels), "encoder_hidden_states_mask": None}


# Text encoders: T5-XXL and CLIP-L; Mistral Small 3.2; Qwen2.5-VL 7B; T5-XXL, CLIP-L and CLIP-G.
MODELS = {
    "flux": Model(
        lambda: FluxTransformer2DModel(guidance_embeds=True), _temb, 4.88e9, 1, text_rests=True
    ),
    "flux2": Model(Flux2Transformer2DModel, _temb_flux2, 24.0e9, 1, text_rests=True),
    "qwen-image": Model(QwenImageTransformer2DModel, _temb_qwen, 8.29e9, 2),
    "sd3.5": Model(
        lambda: SD3Transformer2DModel(
            num_layers=38, num_attention_heads=38, caption_projection_dim=2432,
            pos_embed_max_size=192, qk_norm="rms_norm",
        ),
        _temb, 5.58e9, 2, text=333,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MemoryRow:
    """One edit in bfloat16. GB are 10**9 bytes; a mask in the middle that covers `mask_share`.

    tokens_full, tokens_run: of the picture, and of it those that run at a refresh
    kept_gb:       keys and values of the context, in all branches of guidance
    step_gb:       activations of a refresh, the largest step
    decode_gb:     activations of the autoencoder's decoder on the whole picture
    all_gb:        peak with everything on the GPU
    offload_gb:    peak with one model at a time there: enable_model_cpu_offload
    group_gb:      peak with two blocks at a time there: enable_group_offload, by blocks
    fits_all, fits_offload, fits_group: the smallest of the cards that it fits; empty for none
    """

    model: str
    preset: str
    store: str
    size: int
    mask_share: float
    tokens_full: int
    tokens_run: int
    kept_gb: float
    step_gb: float
    decode_gb: float
    all_gb: float
    offload_gb: float
    group_gb: float
    fits_all: int | None
    fits_offload: int | None
    fits_group: int | None


def bench_memory(
    models: Sequence[str], presets: Sequence[str], sizes: Sequence[int], share: float = 0.16
) -> Iterator[MemoryRow]:
    """Rows for every model, size, preset, and store of its keys and values.

    Raises:
        ValueError: an unknown model or preset, or a size that is no multiple of 16 pixels.
    """
    for name in models:
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; choose from {list(MODELS)}")
    for size in sizes:
        if size < TOKEN or size % TOKEN:
            raise ValueError(f"size must be a multiple of {TOKEN} pixels, got {size}")
    decode = {size: decode_bytes(size) for size in sizes}
    for name in models:
        made = _Made.of(MODELS[name])
        for size in sizes:
            for chosen in presets:
                method = preset(chosen, text_rests=made.model.text_rests)
                stores = (None, "float8") if method.refresh else (None,)
                for store in stores:
                    yield _row(name, made, size, chosen, method, store, decode[size], share)


@dataclass(frozen=True)
class _Made:
    """A model on the meta device, and what of it does not follow from the picture."""

    model: Model
    transformer: Any
    weights: int
    block: int  # the largest of its blocks
    blocks: int

    @classmethod
    def of(cls, model: Model) -> "_Made":
        with torch.device("meta"):
            transformer = model.transformer().bfloat16()
        blocks = _blocks(transformer)
        return cls(model, transformer, _bytes(transformer), max(map(_bytes, blocks)), len(blocks))

    @property
    def channels(self) -> int:
        config = self.transformer.config
        return config["num_attention_heads"] * config["attention_head_dim"]

    def step_bytes(self, tokens: int, batch: int) -> int:
        """Activations of a call, at their most in a block of the first kind."""
        block: Any = self.transformer.transformer_blocks[0]

        def run() -> Any:
            image = torch.empty(batch, tokens, self.channels)
            text = torch.empty(batch, self.model.text, self.channels)
            told = self.model.modulate(self.channels)
            return block(hidden_states=image, encoder_hidden_states=text, **told)

        # Fused attention forms no S x S; what it gives is as large as its queries.
        fused = lambda module, query, key, value, original, **kw: torch.empty_like(query)  # noqa: E731
        with rerouted(block, fused):
            return peak_bytes(run)


def _row(
    name: str, made: _Made, size: int, chosen: str, method: HiLo, store: str | None,
    decode: int, share: float,
) -> MemoryRow:  # fmt: skip
    model = made.model
    full, run, edit = _tokens(chosen, size, share)
    refresh = method.refresh
    refresh = Refresh(refresh) if isinstance(refresh, int) else refresh
    kept = 0
    if isinstance(refresh, Refresh):
        context = run - edit + (model.text if refresh.text else 0)
        size_of = {"float8": 1}.get(store or "", HALF)
        kept = kept_bytes(model.branches, context, made.channels, made.blocks, size_of)
    step = made.step_bytes(run, 2 if name == "sd3.5" else 1)
    encoders, vae = model.encoders * HALF, 0.17e9
    everything = made.weights + encoders + vae + max(kept + step, decode)
    offload = max(made.weights + kept + step, encoders, vae + decode)
    group = max(2 * made.block + kept + step, vae + decode)
    return MemoryRow(
        model=name, preset=chosen, store=store or "as they are", size=size, mask_share=share,
        tokens_full=full, tokens_run=run,
        kept_gb=kept / 1e9, step_gb=step / 1e9, decode_gb=decode / 1e9,
        all_gb=everything / 1e9, offload_gb=offload / 1e9, group_gb=group / 1e9,
        fits_all=_card(everything), fits_offload=_card(offload), fits_group=_card(group),
    )  # fmt: skip


@cache
def _tokens(chosen: str, size: int, share: float) -> tuple[int, int, int]:
    """Of the picture, of a refresh, and of the edit; noise will do for a photo."""
    mask = disc(size, share).astype(np.float32)
    photo = np.random.default_rng(0).random((size, size, 3), np.float32)
    grid = size // TOKEN, size // TOKEN
    plan = plan_tokens(photo, mask, grid=grid, method=preset(chosen))
    return plan.tokens_full, plan.tokens_run, plan.counts["edit"]


def _card(needed: float) -> int | None:
    return next((card for card in CARDS if needed + MARGIN <= card * 1e9), None)


def _blocks(transformer: Any) -> list[nn.Module]:
    return [
        *transformer.transformer_blocks,
        *getattr(transformer, "single_transformer_blocks", []),
    ]


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def decode_bytes(size: int) -> int:
    """Activations of FLUX.1's decoder at their most, of a whole picture, untiled."""
    with torch.device("meta"):
        vae: Any = _flux_vae(Scale("full", 1)).bfloat16()
    assert isinstance(vae, AutoencoderKL)
    with rerouted(vae, lambda module, query, key, value, original, **kw: torch.empty_like(query)):
        return peak_bytes(lambda: vae.decoder(torch.empty(1, 16, size // 8, size // 8)))


def peak_bytes(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that a run makes on the meta device, as many as live at once."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.no_grad(), torch.device("meta"), _Alive() as alive:
            run()
    finally:
        torch.set_default_dtype(before)
    return alive.most


class _Alive(TorchDispatchMode):
    """Follows storages from the operation that makes them until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if _is(x)}
        output = func(*args, **(kwargs or {}))
        for made in filter(_is, tree_leaves(output)):
            storage = made.untyped_storage()
            if id(storage) not in given and storage not in self._seen:
                self._seen.add(storage)
                self._took(storage.nbytes())
                weakref.finalize(storage, self._took, -storage.nbytes())
        return output

    def _took(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)


def _is(x: Any) -> bool:
    return isinstance(x, Tensor)
