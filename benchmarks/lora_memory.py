"""GPU memory of `hilo lora` at the size of FLUX.1 Fill: `python -m benchmarks.lora_memory`.

The transformer is made of meta tensors, which have shapes and no values. One pass of every token at
1024 px is run on them, the largest there is, and what autograd keeps of it is added up; attention
keeps queries, keys, values and what comes out, as flash attention does. Fragments and the CUDA
context are not in the sum: leave a few GB.
"""

from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from torch import Tensor, nn

from hilotoken.adapters.flux import FluxFill
from hilotoken.bench.show.cells import markdown
from hilotoken.train.lora import add_adapter

GB = 1e9
RANK = 16
TOKENS, TEXT, CHANNELS = 64 * 64, 512, 384
BESIDE = (4.76e9 + 0.12e9 + 0.08e9) * 2  # T5-XXL, CLIP and the autoencoder in bfloat16


class Pipe:
    """Of a pipeline what an adapter is put on."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer, self.components = transformer, {"transformer": transformer}


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def kept(model: nn.Module) -> int:
    """Bytes that autograd keeps of one pass, weights left out."""
    weights = {id(w.untyped_storage()) for w in chain(model.parameters(), model.buffers())}
    seen: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            seen[storage._cdata] = storage
        return tensor

    like = {"device": "meta", "dtype": torch.bfloat16}
    attend = lambda query, key, value, **kw: _Flash.apply(query, key, value)  # noqa: E731
    with (
        patch.object(transformer_flux, "dispatch_attention_fn", attend),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        model(
            hidden_states=torch.empty(1, TOKENS, CHANNELS, **like),
            encoder_hidden_states=torch.empty(1, TEXT, 4096, **like),
            pooled_projections=torch.empty(1, 768, **like),
            timestep=torch.empty(1, **like),
            guidance=torch.empty(1, **like),
            img_ids=torch.empty(TOKENS, 3, **like),
            txt_ids=torch.empty(TEXT, 3, **like),
            return_dict=False,
        )
    return sum(storage.nbytes() for storage in seen.values())


def table() -> str:
    """The parts of the sum, in Markdown."""
    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True)
    model.to(torch.bfloat16)
    held = sum(w.nbytes for w in model.parameters())
    pupil = add_adapter(FluxFill(Pipe(model)), RANK)
    trained = sum(w.numel() for w in pupil.values())
    adapter = f"adapter of rank {RANK} ({trained / 1e6:.0f} M), its gradients, average and moments"
    every = kept(model)
    ends = 57 * (TOKENS + TEXT) * 3072 * 2  # what goes into each block
    block = every / 57 * 1.5  # of a block that is computed again, the larger kind
    parts = {
        "transformer, bfloat16": held,
        "text encoders and autoencoder, bfloat16": BESIDE,
        f"{adapter}, float32": trained * (12 + 8),
        f"{adapter}, the moments in eight bits": trained * (12 + 2),
        "activations": every,
        "activations with `--checkpointing`": ends + block,
    }
    lines = [[name, f"{size / GB:.1f}"] for name, size in parts.items()]
    return markdown(["part", "GB"], lines)


if __name__ == "__main__":
    print(table(), end="")
