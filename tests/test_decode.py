"""A region decoded: the same pixels in the mask where the autoencoder looks around itself alone."""

from functools import partial

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny import arguments, inside, make_mask, make_photo, make_pipe

from hilotoken import Dense, HiLo, compress, load_model
from hilotoken.approximate import middle_known, normalised, recorded
from hilotoken.decode import area_of, boxes_of, decode_margin
from hilotoken.encode import Encoding, encode_reach
from hilotoken.memory import Memory

FEW = HiLo(dilate=1, detail=0.05, bucket=8)
CORNER, MIDDLE = (0, 0, 24, 24), (120, 112, 150, 140)


@pytest.fixture(scope="module")
def embedded():
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, mask, method=None, **options):
    fast = compress(pipe, method or Dense(), **options)
    given = {"height": 512, "width": 512, "num_inference_steps": 1, "output_type": "pt"}
    output = fast(
        image=make_photo().resize((512, 512)), mask_image=mask.resize((512, 512)), **given,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return output.images[0], fast.last_run


@pytest.mark.parametrize("box", [CORNER, MIDDLE, (0, 60, 256, 70)])
def test_the_embedded_model_decodes_a_region_as_it_does_the_whole(embedded, box):
    mask = make_mask(box=box)
    whole, run = edit(embedded, mask, decode="whole")
    part, cheap = edit(embedded, mask, decode="region")
    assert run.decoded == 1
    assert cheap.decoded < 0.8
    assert (part - whole).abs().max() <= 2e-6


def test_dense_is_the_untouched_pipeline_unless_told_otherwise(embedded):
    _, run = edit(embedded, make_mask(box=MIDDLE))
    assert run.decoded == run.encoded == 1


@pytest.mark.parametrize("box", [CORNER, MIDDLE])
def test_the_embedded_model_encodes_what_is_masked_as_it_does_the_whole(embedded, box):
    photo = make_photo().resize((512, 512))
    pixels = embedded.image_processor.preprocess(photo)
    masked = pixels * (1 - torch.from_numpy(inside(make_mask(box=box).resize((512, 512)))).float())
    encoding = Encoding(embedded.vae, Memory(), encode_reach(embedded.vae))
    encode = partial(type(embedded.vae).encode, embedded.vae)
    with torch.no_grad():
        encoding(encode, pixels)
        found = encoding(encode, masked).latents
        assert encoding.share < 0.9
        assert (found - encode(masked).latents).abs().max() <= 1e-6
        again = encoding(encode, pixels.clone()).latents
        assert torch.equal(again, encode(pixels).latents)


def test_an_encoder_that_normalises_over_the_picture_encodes_the_whole():
    pipe = make_pipe("kl")
    assert encode_reach(pipe.vae) is None
    assert encode_reach(make_pipe("tiny", torch.bfloat16).vae) is None
    with pytest.raises(ValueError, match="encode='region': AutoencoderKL looks"):
        compress(pipe, FEW, encode="region")(**arguments())


def test_masks_far_apart_are_decoded_apart():
    mask_B1HW = torch.zeros(2, 1, 512, 512)
    mask_B1HW[0, 0, :8, :8] = mask_B1HW[1, 0, 480:, 480:] = 1
    boxes = boxes_of(mask_B1HW, (64, 64), margin=6)
    assert sorted(boxes, key=str) == sorted(
        [(slice(0, 7), slice(0, 7)), (slice(54, 64), slice(54, 64))], key=str
    )
    assert area_of(boxes) == 49 + 100
    assert len(boxes_of(mask_B1HW, (64, 64), margin=40)) == 1
    assert boxes_of(torch.zeros(1, 1, 512, 512), (64, 64), 6) == []


def test_a_decoder_that_normalises_over_the_picture_decodes_the_whole():
    pipe = make_pipe("kl")
    assert decode_margin(pipe.vae) is None
    fast = compress(pipe, FEW)
    fast(**arguments(output_type="pil"))
    assert fast.last_run.decoded == 1
    with pytest.raises(ValueError, match="looks at the whole picture"):
        compress(pipe, FEW, decode="region")(**arguments(output_type="pil"))


def test_a_mask_over_everything_decodes_the_whole(embedded):
    assert edit(embedded, make_mask(box=(0, 0, 256, 256)))[1].decoded == 1


def test_an_autoencoder_that_works_in_parts_does_the_whole(embedded, monkeypatch):
    assert edit(embedded, make_mask(box=MIDDLE), FEW)[1].decoded < 1
    monkeypatch.setattr(embedded.vae, "use_slicing", True)
    assert edit(embedded, make_mask(box=MIDDLE), FEW)[1].decoded == 1
    for way in ("decode", "encode"):
        with pytest.raises(ValueError, match=f"{way}='region' does nothing while tiling"):
            edit(embedded, make_mask(box=MIDDLE), **{way: "region"})


def test_the_decoder_is_left_as_it_was(embedded):
    edit(embedded, make_mask(box=MIDDLE), decode="region", encode="region")
    assert not {"decode", "encode"} & vars(embedded.vae).keys()


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_colours_are_led_to_the_photo_in_every_form_of_picture(kind):
    def picture(match):
        fast = compress(make_pipe("tiny"), FEW, match=match)
        image = fast(**arguments(output_type=kind)).images[0]
        if kind == "pt":
            image = image.movedim(0, -1).numpy()
        return np.asarray(image, np.float32) * (1 if kind == "pil" else 255)

    plain, led, photo = picture(False), picture(True), np.asarray(make_photo(), np.float32)
    mask = inside(make_mask())
    assert np.array_equal(led[~mask], photo[~mask])
    rim = mask & ~np.roll(mask, 1, 0)
    assert abs(led[rim].mean() - photo[rim].mean()) < abs(plain[rim].mean() - photo[rim].mean())


def test_an_unknown_way_to_decode_is_refused():
    for way in ("decode", "encode"):
        with pytest.raises(ValueError, match=f"unknown {way} 'some'"):
            compress(make_pipe(), **{way: "some"})


def latents(pipe, side=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, pipe.vae.config.latent_channels, side, side, generator=generator)


@torch.no_grad()
def test_a_crop_normalised_by_the_whole_decodes_own_statistics_is_the_whole_decode():
    pipe = make_pipe("kl")
    z, box = latents(pipe), (slice(20, 52), slice(0, 30))
    with recorded(pipe.vae.decoder) as statistics:
        whole = pipe.vae.decode(z).sample
    with normalised(statistics), middle_known(pipe.vae.decoder) as crop:
        crop(box)
        part = pipe.vae.decode(z).sample
    margin = 12  # latents, more than the decoder looks
    found = part[..., margin * 8 : -margin * 8, : -margin * 8]
    meant = whole[..., (20 + margin) * 8 : (52 - margin) * 8, : (30 - margin) * 8]
    assert (found - meant).abs().max() <= 2e-6 * whole.abs().max().clamp_min(1)
    assert (pipe.vae.decode(z[..., 20:52, :30]).sample - part).abs().max() > 1e-3
    assert torch.equal(pipe.vae.decode(z).sample, whole)


@torch.no_grad()
def test_a_crops_own_statistics_and_those_of_the_rest_are_the_wholes():
    norm = torch.nn.GroupNorm(2, 4)
    decoder = torch.nn.Sequential()
    decoder.add_module("mid_block", torch.nn.Identity())
    decoder.add_module("norm", norm)
    torch.nn.init.normal_(norm.weight)
    x, inside_hw = 3 * torch.randn(2, 4, 12, 16) + 5, torch.zeros(6, 8, dtype=torch.bool)
    x[..., :6, :10] *= 4  # unlike the rest, as an edit may be
    inside_hw[:3, :5] = True
    with recorded(decoder, inside_hw) as statistics:
        whole = decoder(x)
    with normalised(statistics, 15 / 48):
        part = decoder(x[..., :6, :10])
    assert (part - whole[..., :6, :10]).abs().max() <= 1e-5
    with normalised(statistics):
        assert (decoder(x[..., :6, :10]) - part).abs().max() > 0.1


def test_an_approximate_decode_is_measured_at_the_first_and_right_outside_the_mask():
    pipe = make_pipe("kl")
    given = arguments(output_type="pil")
    fast = compress(pipe, FEW, decode="approximate")
    first, run = fast(**given).images[0], fast.last_run
    whole = compress(pipe, FEW, decode="whole")(**arguments(output_type="pil")).images[0]
    assert run.decoded == 1
    assert run.decode_error > 0
    assert np.array_equal(np.asarray(first), np.asarray(whole))
    second, cheap = np.asarray(fast(**arguments(output_type="pil")).images[0]), fast.last_run
    mask = inside(make_mask())
    assert cheap.decoded < 1
    assert cheap.decode_error == run.decode_error
    assert "of 255 levels" in str(cheap)
    assert np.array_equal(second[~mask], np.asarray(whole)[~mask])
    gap = second[mask].astype(float) - np.asarray(whole)[mask]
    assert np.sqrt((gap**2).mean()) == pytest.approx(run.decode_error, abs=0.5)


def test_an_approximate_decode_is_refused_where_it_would_do_nothing(embedded):
    with pytest.raises(ValueError, match="AutoencoderTiny decodes a region exactly"):
        compress(embedded, FEW, decode="approximate")(**arguments(output_type="pil"))
    pipe = make_pipe("kl")
    pipe.vae.enable_tiling()
    try:
        with pytest.raises(ValueError, match="tiling or slicing is on"):
            compress(pipe, FEW, decode="approximate")(**arguments(output_type="pil"))
    finally:
        pipe.vae.disable_tiling()
    add_hook_to_module(pipe.vae.decoder.conv_norm_out, ModelHook())
    with pytest.raises(ValueError, match="offloaded layer by layer"):
        compress(pipe, FEW, decode="approximate")(**arguments(output_type="pil"))


def test_what_is_probed_in_parts_is_not_remembered_of_the_whole():
    pipe = make_pipe("kl")
    pipe.vae.enable_tiling()
    assert decode_margin(pipe.vae) is None
    pipe.vae.disable_tiling()
    assert decode_margin(pipe.vae) is None
