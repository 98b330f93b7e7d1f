"""JoyImage Edit: the photo is denoised beside its edit, and put back by the pipeline at each step.

Places are made inside, of a grid for each picture, which is a frame. So what is handed over is as
many frames or rows of one token as run, and their places are put in the place of the model's.

B batch, T image tokens of a call, N of the target's grid, S tokens of the short sequence, M coarse
tokens, L text tokens, C latent channels, D channels a token or of a place.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..capture import Seen
from ..hooks import Call, shadowed
from ..plan import token_positions
from ..source import Source
from .rotary import Rotary, RotaryShort

Table = tuple[Tensor, Tensor]  # cosines and sines, [S, D] each


class JoyShort(RotaryShort):
    family: "Joy"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._tables: dict[Any, Any] = {}
        # Of the tokens that run, those that are no coarse ones: int64. Known before any step asks.
        self._native_R = (self.places_S >= 0).nonzero().flatten()

    def shorten(self, call: Call, sigma: float) -> Call:
        short = super().shorten(call, sigma)
        self.ran = 0  # until the places were made
        return short | {"hidden_states": self.family.unrowed(short["hidden_states"])}

    def restore(self, velocity_BSC: Tensor, call: Call, sigma: float) -> Tensor:
        """The velocity of references that ran with it; nothing moves the others."""
        ran_BSC = self.family.rowed(velocity_BSC)
        places_R = self.places_S[self._native_R]
        whole_BTC = ran_BSC.new_zeros(len(ran_BSC), self.whole_length, ran_BSC.shape[-1])
        whole_BTC = whole_BTC.index_copy(1, places_R, ran_BSC.index_select(1, self._native_R))
        target_BNC = super().restore(ran_BSC, call, sigma)
        whole_BTC = torch.cat([target_BNC, whole_BTC[:, self.plan.tokens_full :]], 1)
        return self.family.like_call(whole_BTC, call)

    def table(self, frame: int, whole: Table) -> Table:
        """Of the table of a picture's whole grid, the tokens that run; coarse ones are made."""
        span = self.spans[frame]
        if not span.length:
            return whole[0][:0], whole[1][:0]
        if not span.short:
            return whole
        native = (part.index_select(0, self.plan.keep_K) for part in whole)
        if not self.coarse:
            return tuple(native)  # type: ignore[return-value]
        between = _moved(self.family.turns(self._coarse_places(frame)), whole[0].device)
        return tuple(map(torch.cat, zip(native, between, strict=True)))  # type: ignore[return-value]

    def aligned_table(self) -> Table:
        """All places over the stride: rows and columns."""
        parts = [self.family.turns(self._places(i) / self._strides) for i in range(len(self.spans))]
        table = tuple(map(torch.cat, zip(*parts, strict=True)))
        return _moved(table, self.plan.keep_K.device)

    def _places(self, frame: int) -> Tensor:
        """Frame, row and column of a picture's tokens that run: [S, 3]."""
        h, w = self.spans[frame].grid
        place_S2 = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
        if self.spans[frame].short:
            place_S2 = token_positions(self.plan).cpu()
        return F.pad(place_S2, (1, 0), value=frame)

    def _coarse_places(self, frame: int) -> Tensor:
        return F.pad(self.coarse_places.cpu(), (1, 0), value=frame)

    @property
    def _strides(self) -> Tensor:
        return torch.tensor([1.0, self.plan.stride, self.plan.stride])


class Joy(Rotary):
    """What both have in common: the target is the first picture, [B, T, 4C] in rows."""

    short: ClassVar[Any] = JoyShort
    image_first: ClassVar[bool] = True

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._own: dict[Any, Any] = {}

    def own_table(self, key: Any, make: Callable[[], Any], device: torch.device) -> Any:
        """The model's own places, made on the host: moved once in a run, for all plans."""
        if key not in self._own:
            self._own[key] = _moved(make(), device)
        return self._own[key]

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """As `prepare_latents` does after it made the pixels; the mode, where that samples."""
        vae = self.pipe.vae
        latents = vae.encode(photo_B3HW[:, :, None]).latent_dist.mode()
        mean, std = (
            latents.new_tensor(getattr(vae.config, name)).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return (latents - mean) / std

    def pack(self, latents: Tensor) -> Tensor:
        """Latents of one frame, [B, C, 1, 2h, 2w]."""
        return F.pixel_unshuffle(latents[:, :, 0], 2).flatten(2).mT

    def unrowed(self, rows_BSD: Tensor) -> Tensor:
        """Rows as the transformer takes few tokens."""
        raise NotImplementedError

    def rowed(self, velocity: Tensor) -> Tensor:
        """What the transformer answers to that, as rows [B, S, 4C]."""
        raise NotImplementedError

    def like_call(self, rows_BTC: Tensor, call: Call) -> Tensor:
        """Rows of all pictures as the transformer was to answer."""
        raise NotImplementedError

    def turns(self, place_S3: Tensor) -> Table:
        """Cosines and sines at any places, as the model makes its own at whole ones."""
        config, parts = self.model.config, []
        sizes = config.rope_dim_list or [config.hidden_size // config.num_attention_heads // 3] * 3
        for place_S, size in zip(place_S3.T, sizes, strict=True):
            rates = 1.0 / config.theta ** (torch.arange(0, size, 2).float() / size)
            parts.append(torch.outer(place_S, rates).repeat_interleave(2, 1))
        angle_SD = torch.cat(parts, 1)
        return angle_SD.cos(), angle_SD.sin()


class JoyEditShort(JoyShort):
    sizes: Any = None  # pictures, rows and columns of the call under way

    def placed(self, call: Call) -> Call:
        """None that is handed over: see `JoyImageEdit.stand_ins`."""
        self.sizes = [len(self.spans), *self.plan.grid]
        return {}

    def places(self, original: Callable[..., Any], text: int | None) -> tuple[Table, Any]:
        """The model's own places for the tokens that run, and those of the text."""
        if text not in self._tables:
            whole, words = self.family.own_table(
                (*self.sizes, text),
                lambda: original(vis_rope_size=self.sizes, txt_rope_size=text),
                self.plan.keep_K.device,
            )
            frames = zip(*(part.chunk(len(self.spans)) for part in whole), strict=True)
            parts = [self.table(i, frame) for i, frame in enumerate(frames)]
            self._tables[text] = tuple(map(torch.cat, zip(*parts, strict=True))), words
        self.ran = len(self._tables[text][0][0])
        return self._tables[text]

    def _aligned_rotary(self, short: Call) -> Any:
        """Text, where it has places, begins where a picture so much smaller would end."""
        text = short["encoder_hidden_states"].shape[1]
        if ("aligned", text) not in self._tables:
            words = None
            if self.family.model.config.rope_type == "mrope":
                end = max(self.sizes[0] - 1, *((n - 1) / self.plan.stride for n in self.plan.grid))
                words = self.family.turns((torch.arange(text) + end + 1)[:, None].expand(-1, 3))
                words = _moved(words, self.plan.keep_K.device)
            self._tables["aligned", text] = self.aligned_table(), words
        return self._tables["aligned", text]


class JoyImageEdit(Joy):
    """Edit: pictures [B, n, C, 1, 2h, 2w] of one size, the target last."""

    short: ClassVar[Any] = JoyEditShort

    def tokens(self, call: Call) -> Tensor:
        return self._folded(call["hidden_states"]).flatten(1, 2)

    def grids(self, call: Call) -> list[tuple[int, int]]:
        _, pictures, _, _, height, width = call["hidden_states"].shape
        return [(height // 2, width // 2)] * pictures

    def pack(self, latents: Tensor) -> Tensor:
        """Of what the scheduler steps, the target."""
        return super().pack(latents[:, -1] if latents.ndim == 6 else latents)

    def make_source(self, seen: Seen, mask_image: Any, call: Call) -> tuple[Source, Tensor] | None:
        if seen.photo_B3HW is not None and seen.latents is None:
            raise ValueError(
                "enable_denormalization=False is not supported: the model would be shown latents "
                "on another scale; leave it out"
            )
        return super().make_source(seen, mask_image, call)

    def unrowed(self, rows_BSD: Tensor) -> Tensor:
        """A frame of 2x2 latents for each token: [B, C, S, 2, 2]."""
        return rows_BSD.unflatten(2, (-1, 2, 2)).movedim(1, 2)

    def rowed(self, velocity: Tensor) -> Tensor:
        return velocity.movedim(2, 1).flatten(2)

    def like_call(self, rows_BTC: Tensor, call: Call) -> Tensor:
        _, pictures, _, _, height, width = call["hidden_states"].shape
        rows_BnhwC = rows_BTC.unflatten(1, (pictures, height // 2, width // 2))
        latents = F.pixel_shuffle(rows_BnhwC.movedim(-1, 2), 2)[:, :, :, None]
        return latents.roll(-1, 1)

    def _folded(self, items: Tensor) -> Tensor:
        """[B, n, N, 4C], the target first."""
        return F.pixel_unshuffle(items[:, :, :, 0], 2).flatten(3).mT.roll(1, 1)

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        def places(original: Callable[..., Any], vis_rope_size: Any, txt_rope_size: Any) -> Any:
            return run.short.places(original, txt_rope_size)

        return (*super().stand_ins(run), shadowed(self.model, "get_rotary_pos_embed", places))


class JoyPlusShort(JoyShort):
    def placed(self, call: Call) -> Call:
        """Grids of one row, as long as the short spans; their places are those of the whole."""
        lengths = [self.plan.tokens_run if span.short else span.length for span in self.spans]
        return {"shape_list": [[(1, 1, n) for n in lengths]] * len(call["shape_list"])}

    def places(self, original: Callable[..., Any], frame: int) -> Table:
        """The model's own places for the tokens of a picture that run."""
        if frame not in self._tables:
            grid = self.spans[frame].grid
            whole = self._tables.get(0)  # of a picture that does not run nothing is needed
            if whole is None or self.spans[frame].length:
                whole = self.family.own_table(
                    (frame, *grid),
                    lambda: original((frame, 0, 0), (frame + 1, *grid)),
                    self.plan.keep_K.device,
                )
            self._tables[frame] = self.table(frame, whole)
        self.ran = self.ran * (frame > 0) + len(self._tables[frame][0])
        return self._tables[frame]

    def _aligned_rotary(self, short: Call) -> Any:
        if "aligned" not in self._tables:
            batch = len(short["hidden_states"])
            parts = (part.expand(batch, -1, -1) for part in self.aligned_table())
            self._tables["aligned"] = tuple(parts)
        return self._tables["aligned"]


class JoyImageEditPlus(Joy):
    """Edit Plus: tokens [B, T, C, 1, 2, 2] of pictures of any size, the target first.

    One prompt at a time: pictures of several prompts are padded to one length.
    """

    short: ClassVar[Any] = JoyPlusShort

    def tokens(self, call: Call) -> Tensor:
        return call["hidden_states"].flatten(2)

    def grids(self, call: Call) -> list[tuple[int, int]]:
        return [(h, w) for _, h, w in call["shape_list"][0]]

    def pack(self, latents: Tensor) -> Tensor:
        """What the scheduler steps is packed already."""
        return latents.flatten(2) if latents.ndim == 6 else super().pack(latents)

    def make_source(self, seen: Seen, mask_image: Any, call: Call) -> tuple[Source, Tensor] | None:
        guided = self.pipe.do_classifier_free_guidance
        if len(call["shape_list"]) > 1 + guided:
            raise ValueError(
                f"{type(self.pipe).__name__} pads the pictures of several prompts to one length: "
                "give one prompt at a time"
            )
        return super().make_source(seen, mask_image, call)

    def unrowed(self, rows_BSD: Tensor) -> Tensor:
        return rows_BSD.unflatten(2, (-1, 1, 2, 2))

    def rowed(self, velocity: Tensor) -> Tensor:
        return velocity.flatten(2)

    def like_call(self, rows_BTC: Tensor, call: Call) -> Tensor:
        return self.unrowed(rows_BTC)

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        def places(original: Callable[..., Any], start: Any, stop: Any) -> Any:
            return run.short.places(original, start[0])

        name = "_get_rotary_pos_embed_for_range"
        return (*super().stand_ins(run), shadowed(self.model, name, places))


def _moved(made: Any, device: torch.device) -> Any:
    """Tensors, in tuples as they are, on the device."""
    if isinstance(made, tuple):
        return tuple(_moved(part, device) for part in made)
    return made if made is None else made.to(device)
