"""The embedded model's pipeline: a `FluxFillPipeline` that needs no prompt."""

import inspect
from functools import wraps
from typing import Any

import torch
from diffusers import FluxFillPipeline

from ..hooks import shadowed
from ..methods.udit import as_trained
from ..noise import quiet


class EmbeddedFillPipeline(FluxFillPipeline):
    """A `FluxFillPipeline` without text encoders, which needs no prompt.

    The prompt is the identity matrix: row i picks column i of the transformer's text embedding, so
    the empty prompt is learned, and lies in the transformer's own weights. The pooled projection
    takes a kind of thing, one of `labels`, or none. Noise is `quiet`. In all else this is the
    pipeline that it derives from, and the saved folder loads as one, given None for the text
    encoders and tokenizers; its own noise is white, so give such `latents`.
    """

    labels: tuple[str, ...] = ()  # kinds of things that it was trained to tell apart
    default_steps = 8

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        transformer: Any,
    ) -> None:
        super().__init__(
            scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer
        )
        self.default_sample_size = 64  # latents: 512 pixels a side

    def prompt(self, count: int = 1, label: str = "") -> dict[str, torch.Tensor]:
        """The empty prompt, or a label, `count` times: the two arguments that stand for it.

        Raises ValueError for a label that the model was not trained on.
        """
        weight = self.transformer.context_embedder.weight
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        pooled = torch.zeros(count, self.transformer.config.pooled_projection_dim)
        if label:
            pooled[:, self._index(label)] = 1
        return {
            "prompt_embeds": eye.expand(count, -1, -1),
            "pooled_prompt_embeds": pooled.to(eye),
        }

    def _index(self, label: str) -> int:
        if label not in self.labels:
            known = f"choose from {list(self.labels)}" if self.labels else "this model has none"
            raise ValueError(f"unknown label {label!r}: {known}")
        return self.labels.index(label)

    @wraps(FluxFillPipeline.__call__)
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> Any:
        given = inspect.signature(FluxFillPipeline.__call__).bind(self, *args, **kwargs).arguments
        if any(given.pop("prompt", None) or ()):  # a text, or a list of them
            known = f", or name a label, one of {list(self.labels)}" if self.labels else ""
            raise ValueError(f"the embedded model reads no prompt: leave it out{known}")
        if "prompt_embeds" not in given:
            given |= self.prompt(_batch(given.get("image")))
        given.setdefault("num_inference_steps", self.default_steps)
        del given["self"]
        with as_trained(self.transformer, self.scheduler):
            return super().__call__(**given)

    @wraps(FluxFillPipeline.prepare_latents)
    def prepare_latents(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> Any:
        def add_quiet(add: Any, clean: Any, timestep: Any, noise: torch.Tensor) -> Any:
            return add(clean, timestep, quiet(noise))

        # The noise is drawn in the middle of the method, and this is where it goes by.
        with shadowed(self.scheduler, "scale_noise", add_quiet):
            return super().prepare_latents(*args, **kwargs)


def _batch(image: Any) -> int:
    if isinstance(image, list | tuple):
        return max(1, len(image))
    return image.shape[0] if getattr(image, "ndim", 0) == 4 else 1
