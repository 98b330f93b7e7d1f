"""SD3 and Z-Image: what is theirs alone; the contract is in `test_contract.py`."""

from dataclasses import replace
from typing import Any

import family_sd3
import family_zimage
import numpy as np
import pytest
import torch
from contract import FEW, KEEP_ALL, plain_steps, steps, worst
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid
from tiny import GRID, SIZE, TEXT, TOKENS, Fixed, fixed, inside, make_mask, make_photo
from torch import nn

from hilotoken import HiLo, compress
from hilotoken.adapters.coarse import Coarse
from hilotoken.adapters.sd3 import coarse_rows
from hilotoken.adapters.zimage import rotary
from hilotoken.attention import rerouted
from hilotoken.plan import TokenPlan, token_positions

SD3_INPAINT, SD3_CONCAT, SD3_IMG2IMG = family_sd3.FAMILIES
ZIMAGE_INPAINT, ZIMAGE_IMG2IMG, _ = family_zimage.FAMILIES
BOTH = pytest.mark.parametrize("family", [SD3_INPAINT, ZIMAGE_INPAINT], ids=lambda f: f.name)


def coarse_plan(keep_K, cells_M, stride, grid=GRID) -> TokenPlan:
    counts = torch.ones(len(keep_K) + len(cells_M))
    edit_N = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    return TokenPlan(grid, keep_K, edit_N, stride, cells_M, counts)


# Coarse tokens.


@BOTH
def test_coarse_tokens_of_one_cell_each_are_the_tokens_themselves(family, monkeypatch):
    """What enters as a coarse token is embedded and placed as a native one is."""
    pipe = family.make(torch.float32)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    keep_K, cells_M = order[:150].sort().values, order[150:].sort().values
    monkeypatch.setattr(Coarse, "tokens", lambda self, x, sigma: x.index_select(1, cells_M))
    method = Fixed(coarse_plan(keep_K, cells_M, stride=1))
    ran = steps(family, pipe, compress(pipe, method), family.arguments(num_inference_steps=1))
    dense = plain_steps(family, pipe, family.arguments(num_inference_steps=1))
    assert worst(ran[0][0][:, keep_K], dense[0][0][:, keep_K]) <= 2e-6 * dense[0][0].abs().max()


@pytest.mark.parametrize(("h", "w", "stride"), [(16, 16, 4), (13, 18, 4), (7, 20, 3), (16, 5, 2)])
def test_coarse_places_of_sd3_are_exact_between_the_rows_of_its_table(h, w, stride):
    pipe = SD3_INPAINT.make(torch.float32)
    embed, P = pipe.transformer.pos_embed, pipe.transformer.config.pos_embed_max_size
    cells_M = torch.arange(-(-h // stride) * -(-w // stride))
    plan = coarse_plan(torch.arange(3), cells_M, stride, (h, w))
    found = coarse_rows(embed, plan)
    place_M2 = token_positions(plan)[3:] + torch.tensor([(P - h) // 2, (P - w) // 2])
    place_M2 = place_M2.clamp(max=P - 1)
    scaled = place_M2.flip(-1).T * embed.base_size / P  # columns go first there
    exact = get_2d_sincos_pos_embed_from_grid(embed.pos_embed.shape[-1], scaled)
    assert worst(found, exact.float()) < 1e-6
    plan = replace(plan, positions="native")
    place_M2 = token_positions(plan)[3:].long()
    rows = embed.cropped_pos_embed(2 * h, 2 * w)[0].unflatten(0, (h, w))
    inside_M = (place_M2 < torch.tensor([h, w])).all(-1)
    row, column = place_M2[inside_M].T
    assert torch.equal(coarse_rows(embed, plan)[inside_M], rows[row, column])


def test_a_table_of_places_that_is_not_of_sines_is_interpolated_too():
    pipe = SD3_INPAINT.make(torch.float32)
    embed = pipe.transformer.pos_embed
    nn.init.normal_(embed.pos_embed)
    plan = coarse_plan(torch.arange(3), torch.arange(16), 4)
    assert coarse_rows(embed, plan).isfinite().all()


def test_rotary_factors_of_zimage_are_those_of_its_table_and_between():
    embedder = ZIMAGE_INPAINT.make(torch.float32).transformer.rope_embedder
    axis = torch.arange(32)
    ids = torch.stack([torch.ones(32), axis, axis.flip(0)], 1).int()
    table, sides = embedder(ids)[:, 2:], embedder.axes_dims[1:]
    assert torch.equal(rotary(sides, embedder.theta, ids[:, 1:]), table)
    between = rotary(sides, embedder.theta, ids[:, 1:] + torch.tensor([0.5, -0.5]))
    middle = table[:-1] + table[1:]
    assert (between[:-1] - middle / middle.abs()).abs().max() < 1e-6


def test_aligned_places_leave_native_queries_alone_and_turn_coarse_ones():
    """At stride 1 the coarse stride is the native one, so nothing turns."""
    pipe = ZIMAGE_INPAINT.make(torch.float32)
    keep_K, cells_M = torch.arange(0, 256, 2), torch.arange(1, 256, 2)
    ends = []
    for stride, positions in ((1, "interpolated"), (1, "aligned"), (2, "aligned")):
        cells = cells_M if stride == 1 else torch.arange(64)
        plan = replace(coarse_plan(keep_K, cells, stride), positions=positions)
        given = ZIMAGE_INPAINT.arguments(num_inference_steps=1)
        ends.append(steps(ZIMAGE_INPAINT, pipe, compress(pipe, Fixed(plan)), given)[0][0])
    assert worst(ends[0], ends[1]) < 1e-5
    plan = replace(plan, positions="interpolated")
    given = ZIMAGE_INPAINT.arguments(num_inference_steps=1)
    other = steps(ZIMAGE_INPAINT, pipe, compress(pipe, Fixed(plan)), given)[0][0]
    assert worst(ends[2], other) > 1e-4


# Stable Diffusion 3.


def test_the_crop_around_the_mask_is_planned_on_and_overlaid():
    pipe = SD3_INPAINT.make(torch.float32)
    given = {"output_type": "pil", "padding_mask_crop": 16, "strength": 0.7}
    photo, mask = make_photo(420, 300), make_mask(420, 300, (70, 90, 120, 140))
    given |= {"image": photo, "mask_image": mask}
    plain = pipe(**SD3_INPAINT.arguments(**given)).images[0]
    kept = compress(pipe, KEEP_ALL)(**SD3_INPAINT.arguments(**given)).images[0]
    assert np.array_equal(np.asarray(kept), np.asarray(plain))
    fast: Any = compress(pipe, FEW)
    image = np.asarray(fast(**SD3_INPAINT.arguments(**given)).images[0])
    assert fast.last_run.plan.counts["edit"] > TOKENS / 4  # the mask fills the crop
    outside = ~inside(mask)
    assert np.array_equal(image[outside], np.asarray(photo)[outside])


class ImageTokens(nn.Module):
    """In place of an IP adapter's projection."""

    def forward(self, embeds, timestep):
        return embeds, embeds[:, 0, :8].new_ones(len(embeds), 8)


def with_ip_adapter(pipe):
    torch.manual_seed(0)
    model = pipe.transformer
    model.image_proj = ImageTokens()
    for block in model.transformer_blocks:
        processor = SD3IPAdapterJointAttnProcessor2_0(16, 16, 8, 8)
        for part in processor.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.3)
        block.attn.processor = processor
    return {"ip_adapter_image_embeds": torch.randn(2, 4, 16)}


def test_an_ip_adapter_sees_few_tokens_and_their_counts():
    pipe = SD3_INPAINT.make(torch.float32)
    plain = plain_steps(SD3_INPAINT, pipe, SD3_INPAINT.arguments())[-1][1]
    given = with_ip_adapter(pipe)
    dense = plain_steps(SD3_INPAINT, pipe, SD3_INPAINT.arguments(**given))[-1][1]
    assert worst(dense, plain) > 1e-3  # the adapter counts
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    mixed = steps(SD3_INPAINT, pipe, compress(pipe, fixed(order)), SD3_INPAINT.arguments(**given))
    assert worst(mixed[-1][1], dense) <= 2e-6 * dense.abs().max()
    counts = torch.randint(1, 4, (TOKENS,), generator=torch.Generator().manual_seed(0))
    once, repeated = torch.arange(TOKENS), torch.arange(TOKENS).repeat_interleave(counts)
    weighted, duplicated = (
        steps(SD3_INPAINT, pipe, compress(pipe, method), SD3_INPAINT.arguments(**given))[0][0]
        for method in (fixed(once, counts.float(), weighted=True), fixed(repeated))
    )
    assert worst(weighted, duplicated) <= 1e-5 * max(1, weighted.abs().max())


def test_coarse_tokens_with_33_channels_carry_mask_and_masked_photo():
    pipe = SD3_CONCAT.make(torch.float32)
    seen = []
    pipe.transformer.pos_embed.proj.register_forward_hook(
        lambda module, args, output: seen.append(args[0])
    )
    fast = compress(pipe, HiLo(dilate=0, detail=0.0, bucket=1, coarse_cells="all"))
    fast(**SD3_CONCAT.arguments(num_inference_steps=1))
    whole, strip = seen
    assert whole.shape[1:] == (33, 32, 32)
    assert strip.shape[1:] == (33, 2, 2 * 16)
    mask = strip[:, 16].unflatten(-1, (16, 2)).amax((1, 3)).unflatten(-1, (4, 4))
    touched = inside(make_mask()).reshape(4, 64, 4, 64).any((1, 3))
    assert np.array_equal(mask[0].numpy() > 0, touched)
    assert strip[:, 17:].std() > 0.1


# Z-Image.

ODD = {"image": make_photo(240, 208), "mask_image": make_mask(240, 208)}
SMALL = {"height": 240, "width": 208, "num_inference_steps": 1} | ODD


@pytest.mark.parametrize("family", [ZIMAGE_INPAINT, ZIMAGE_IMG2IMG], ids=lambda f: f.name)
def test_the_padding_of_zimage_is_that_of_the_whole_picture(family):
    """Its 15x13 tokens are padded to 224: dropping any leaves these 29 as they are."""
    pipe, grid, N = family.make(torch.float32), (15, 13), 195
    given = lambda: family.arguments(**SMALL, **{"strength": 1.0})  # noqa: E731
    plain = plain_steps(family, pipe, given())[0][0]
    kept = steps(family, pipe, compress(pipe, KEEP_ALL), given())[0][0]
    assert torch.equal(kept, plain)
    none = torch.arange(0)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    mixed = Fixed(coarse_plan(order, none, 0, grid))
    assert worst(steps(family, pipe, compress(pipe, mixed), given())[0][0], plain) <= 1e-5
    keep_K = order[:77].sort().values
    short = steps(family, pipe, compress(pipe, Fixed(coarse_plan(keep_K, none, 0, grid))), given())
    seen_N = torch.zeros(N, dtype=torch.bool).index_fill(0, keep_K, True)

    def attend(module, query, key, value, original, **kwargs):
        if key.shape[1] < N:
            return original(query, key, value, **kwargs)
        seen_S = torch.ones(key.shape[1], dtype=torch.bool)
        seen_S[:N] = seen_N
        mask = seen_S.expand(1, 1, query.shape[1], -1)
        return original(query, key, value, **kwargs | {"attn_mask": mask})

    with rerouted(pipe.transformer, attend):
        masked = plain_steps(family, pipe, given())[0][0]
    short, masked = short[0][0][:, keep_K], masked[:, keep_K]
    assert worst(short, masked) <= 2e-6 * masked.abs().max()


def test_a_photo_of_any_size_is_taken_at_the_size_that_zimage_rounds_it_to():
    pipe = ZIMAGE_INPAINT.make(torch.float32)
    given = {"image": make_photo(231, 250), "mask_image": make_mask(231, 250)}
    given |= {"height": None, "width": None, "output_type": "pil"}
    fast: Any = compress(pipe, FEW)
    image = fast(**ZIMAGE_INPAINT.arguments(**given)).images[0]
    assert image.size == (240, 224)
    assert fast.last_run.plan.grid == (14, 15)


def test_guidance_of_limited_norm():
    """It scales every velocity by norms of the whole picture: blending still ends on the source."""
    pipe = ZIMAGE_INPAINT.make(torch.float32)
    given = lambda: ZIMAGE_INPAINT.arguments(cfg_normalization=1.0)  # noqa: E731
    plain = plain_steps(ZIMAGE_INPAINT, pipe, given())
    kept = steps(ZIMAGE_INPAINT, pipe, compress(pipe, KEEP_ALL), given())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, plain, strict=True))
    fast: Any = compress(pipe, FEW)
    end = ZIMAGE_INPAINT.tokens(pipe, fast(**given()).images)
    dropped_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, fast.last_run.plan.keep_K, False)
    x0 = ZIMAGE_INPAINT.source(pipe, given())
    assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 2e-6 * x0.abs().max()


@BOTH
def test_callbacks_see_whole_latents_and_embeddings_may_be_ragged(family):
    pipe, shapes = family.make(torch.float32), []

    def look(pipe, step, timestep, given):
        shapes.append(given["latents"].shape[-2:])
        return given

    compress(pipe)(**family.arguments(callback_on_step_end=look))
    assert shapes == [(SIZE // 8, SIZE // 8)] * 3
    assert TEXT % 32
