"""Models in folders, photos to edit by them and to train on, and a Ctrl-C at will."""

import io
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from PIL import Image, ImageCms
from tiny import make_photo, make_pipe
from torch import nn

from hilotoken.metrics.lpips import LPIPS
from hilotoken.model import LABELS, REGISTERS, new_transformer
from hilotoken.photo import Photo
from hilotoken.train.autoencoder import new_autoencoder
from hilotoken.train.latent_cache import LatentCache, ViewOptions, make_views
from hilotoken.train.run import export


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


_folders: list[tempfile.TemporaryDirectory] = []  # removed at exit


@cache
def saved_model() -> Path:
    """What `hilo train` writes; random weights drawn wide enough that every input counts."""
    _folders.append(tempfile.TemporaryDirectory())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = autoencoder, transformer = new_autoencoder(), new_transformer(3)
        for part in parts:
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        nn.init.constant_(list(autoencoder.decoder.modules())[-1].bias, 0.5)  # mid grey
    return export(autoencoder, transformer, 1.0, Path(_folders[-1].name))


SIZE = 150, 170  # height, width of the photos below
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[0x010E], tags[0x0112] = "a photo", orientation
    return tags.tobytes()


def write_photo(folder: Path, kind: str) -> Path:
    """A photo of one of KINDS."""
    return KINDS[kind](folder, make_photo(*SIZE))


def _jpeg(orientation: int):
    def write(folder: Path, photo: Image.Image) -> Path:
        path = folder / "photo.jpg"
        photo.save(path, quality=95, icc_profile=PROFILE, exif=exif(orientation))
        return path

    return write


def _png(mode: str):
    def write(folder: Path, photo: Image.Image) -> Path:
        path = folder / "photo.png"
        picture = photo.quantize(200) if mode == "P" else photo.convert(mode)
        if mode == "RGBA":
            picture.putalpha(photo.convert("L"))
        picture.save(path, icc_profile=PROFILE if mode != "L" else None, exif=exif())
        return path

    return write


def _sixteen(folder: Path, photo: Image.Image) -> Path:
    path = folder / "photo.png"
    low = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint16)
    cv2.imwrite(str(path), np.asarray(photo).astype(np.uint16) * 256 + low)
    return path


KINDS = {"JPEG": _jpeg(1), "rotated": _jpeg(6), "16 bit": _sixteen}
KINDS |= {mode: _png(mode) for mode in ("RGB", "RGBA", "L", "P")}


def write_mask(folder: Path, photo: Photo, *boxes: tuple[int, int, int, int]) -> Path:
    """White in the boxes of left, top, right, bottom, in the photo's upright frame."""
    mask = np.zeros(photo.pixels.shape[:2], np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 255
    path = folder / "mask.png"
    Image.fromarray(mask).save(path)
    return path


def as_bytes(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@cache
def saved_reader() -> Path:
    """A Fill pipeline that reads a prompt: tiny, with text encoders and a KL autoencoder."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    _folders.append(tempfile.TemporaryDirectory())
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "cat</w>": 3, "dog</w>": 4}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁cat", -1.0)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIPTextConfig(
            vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, projection_dim=16, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        t5 = T5Config(vocab_size=5, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        parts = {
            "text_encoder": CLIPTextModel(clip),
            "tokenizer": CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
            "text_encoder_2": T5EncoderModel(t5),
            "tokenizer_2": T5TokenizerFast(vocab=pieces, extra_ids=0),
        }
    pipe = make_pipe("kl")
    pipe.register_modules(**parts)
    pipe.save_pretrained(_folders[-1].name)
    return Path(_folders[-1].name)


KIND = ("fish", "owl", "fish", "", "cow", "fish")  # cows are not trained on


def training_photos(folder: Path) -> Path:
    """Four photographs to train on of three kinds, two held out; one with its silhouette."""
    rows = ["file,split,scale,mask,kind"]
    for i, split in enumerate(("train", "train", "val", "train", "val", "")):
        make_photo(260, 270 + i, seed=i).save(folder / f"{i}.png")
        rows.append(
            f"{i}.png,{split},{1.3 if i == 1 else ''},{'shape.png' if i == 0 else ''},{KIND[i]}"
        )
    shape = np.zeros((50, 60), np.uint8)
    shape[10:30, 20:50] = 255
    Image.fromarray(shape).save(folder / "shape.png")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def interrupt_at(patch, owner, name: str, call: int) -> None:
    """The `call`-th call of owner.name is a Ctrl-C; a file is half written by then."""
    original, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            if owner is torch:
                Path(args[1]).write_bytes(b"half a checkpoint")
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(owner, name, interrupted)


def curve(path: Path, *names: str) -> list[float]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [float(value) for _, _, name, value in rows if name in names]


def small_transformer(blocks: int = 1) -> FluxTransformer2DModel:
    """The embedded model's in kind, a hundred times smaller."""
    return FluxTransformer2DModel(
        in_channels=2 * 4 * 8 + 4 * 64,
        out_channels=4 * 8,
        num_layers=1,
        num_single_layers=blocks,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=REGISTERS,
        pooled_projection_dim=LABELS,
        axes_dims_rope=(8, 28, 28),
    )


def small_views(folder: Path, options: ViewOptions) -> tuple[list, AutoencoderTiny, LatentCache]:
    """Two photographs, an autoencoder 8 channels wide, and views of the former by the latter."""
    photos = [np.asarray(make_photo(256, 256, seed=seed)) for seed in range(2)]
    with patch("hilotoken.train.autoencoder.WIDTH", 8):
        model = new_autoencoder().requires_grad_(False)
    views = LatentCache.open(folder, options, 8)
    make_views(views, photos, [], model, folder, torch.device("cpu"))
    return photos, model, views


def some_distance() -> LPIPS:
    """LPIPS over features of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LPIPS().requires_grad_(False)
    for head in model.heads:
        head.weight.abs_()
    return model
