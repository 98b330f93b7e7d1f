"""Whole pipelines in folders, as a user has them: tiny, with text encoders and tokenizers.

Weights are random, and every part is of the class that the real checkpoints have.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import family_fibo2
import family_flux
import family_flux2
import family_joyimage
import family_kandinsky
import family_qwen
import family_sd3
import family_zimage
import torch
import transformers
from diffusers import Flux2Transformer2DModel
from diffusers.pipelines.joyimage import image_processor
from tiny import widen
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BatchFeature,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 16
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def _clip(projected: bool = False) -> tuple[Any, Any]:
    config = CLIPTextConfig(
        vocab_size=5, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=WIDTH // 2 if projected else WIDTH, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "cat</w>": 3, "dog</w>": 4}
    tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=77)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), tokenizer


def _t5(width: int) -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁cat", -1.0)]
    config = T5Config(vocab_size=5, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5TokenizerFast(vocab=pieces, extra_ids=0)


def _bytes() -> Qwen2Tokenizer:
    """Reads any text, byte by byte."""
    words = sorted(ByteLevel.alphabet()) + list(SPECIAL)
    return Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], chat_template=CHAT,
        additional_special_tokens=list(SPECIAL),
    )  # fmt: skip


class Qwen2VLProcessor(ProcessorMixin):
    """Of its namesake in transformers, which torchvision is needed for, what no video needs."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        self.image_processor.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, folder: Any, **_: Any) -> "Qwen2VLProcessor":
        images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        return cls(images, Qwen2Tokenizer.from_pretrained(folder))

    def __call__(self, text: Any, images: Any, **given: Any) -> BatchFeature:
        seen = self.image_processor(images=images, return_tensors="pt")
        words = "<|image_pad|>" * int(seen["image_grid_thw"].prod() // 4)
        text = [one.replace("<|image_pad|>", words) for one in text]
        return BatchFeature({**self.tokenizer(text, **given), **seen})


class Qwen3VLProcessor(Qwen2VLProcessor):
    """The same of the next generation, which is told where the pictures are."""

    def __call__(self, text: Any, images: Any, **given: Any) -> BatchFeature:
        if images is None:
            return BatchFeature(dict(self.tokenizer(text, **given)))
        made = super().__call__(text, images, **given)
        picture = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return BatchFeature({**made, "mm_token_type_ids": (made["input_ids"] == picture).int()})


for kind in (Qwen2VLProcessor, Qwen3VLProcessor):
    kind.__module__ = "transformers"  # what `model_index.json` will say


def _qwen3(kind: Callable[..., Any], layers: int) -> tuple[Any, Any]:
    tokenizer = _bytes()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=16,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return kind(config), tokenizer


def _flux(name: str) -> Any:
    pipe = family_flux.make(name)
    (clip, words), (t5, pieces) = _clip(), _t5(WIDTH)
    pipe.register_modules(text_encoder=clip, tokenizer=words, text_encoder_2=t5, tokenizer_2=pieces)
    return pipe


def _sd3(name: str) -> Any:
    pipe = family_sd3.make(name)
    del pipe.encode_prompt  # the family's own, which repeats embeddings
    (one, words), (two, again), (t5, pieces) = _clip(True), _clip(True), _t5(2 * WIDTH)
    transformer = type(pipe.transformer).from_config(
        dict(pipe.transformer.config, joint_attention_dim=2 * WIDTH)
    )
    widen(transformer)
    pipe.register_modules(
        transformer=transformer, text_encoder=one, tokenizer=words, text_encoder_2=two,
        tokenizer_2=again, text_encoder_3=t5, tokenizer_3=pieces,
    )  # fmt: skip
    return pipe


def _places(tokenizer: Any) -> dict[str, int]:
    """Of the words that stand for pictures."""
    word = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": word("<|image_pad|>"),
        "video_token_id": word("<|video_pad|>"),
        "vision_start_token_id": word("<|vision_start|>"),
        "vision_end_token_id": word("<|vision_end|>"),
    }


def _qwen2_vl() -> tuple[Any, Any, Any]:
    """Encoder, tokenizer and processor."""
    tokenizer = _bytes()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": WIDTH, "fullatt_block_indexes": [],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_places(tokenizer))
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    return encoder, tokenizer, Qwen2VLProcessor(Qwen2VLImageProcessorPil(), tokenizer)


def _qwen3_vl(layers: int) -> tuple[Any, Any, Any]:
    """Encoder, tokenizer and processor."""
    tokenizer = _bytes()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 16,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1],
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": WIDTH, "deepstack_visual_indexes": [],
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_places(tokenizer))
    images = Qwen2VLImageProcessorPil(patch_size=16)
    encoder = Qwen3VLForConditionalGeneration(config)
    return encoder, tokenizer, Qwen3VLProcessor(images, tokenizer)


def _qwen_edit(name: str) -> Any:
    pipe = family_qwen.make(name, patches=False)
    encoder, tokenizer, processor = _qwen2_vl()
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer, processor=processor)
    return pipe


def _joyimage(name: str) -> Any:
    pipe = family_joyimage.make(name, patches=False, words=True)
    encoder, tokenizer, processor = _qwen3_vl(1)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer, processor=processor)
    return pipe


def _kandinsky(name: str) -> Any:
    pipe = family_kandinsky.make()
    (encoder, _, processor), (clip, words) = _qwen2_vl(), _clip()
    pipe.register_modules(
        text_encoder=encoder, tokenizer=processor, text_encoder_2=clip, tokenizer_2=words
    )
    return pipe


def _fibo2(name: str) -> Any:
    pipe = family_fibo2.make()
    encoder, _, processor = _qwen3_vl(35)  # of which those from the 5th to the 35th are read
    transformer = type(pipe.transformer).from_config(
        dict(
            pipe.transformer.config,
            cap_feat_dim=3 * WIDTH,
            n_layers=5,
            injection_layer_ids=tuple(range(5)),
        )
    )
    widen(transformer)
    pipe.register_modules(transformer=transformer, text_encoder=encoder, processor=processor)
    return pipe


def _zimage(name: str) -> Any:
    pipe = family_zimage.make(name)
    encoder, tokenizer = _qwen3(Qwen3Model, 2)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    return pipe


def _klein(name: str) -> Any:
    pipe = family_flux2.make(name)
    encoder, tokenizer = _qwen3(Qwen3ForCausalLM, 28)  # its 9th, 18th and 27th layers are read
    transformer = Flux2Transformer2DModel.from_config(
        dict(pipe.transformer.config, joint_attention_dim=3 * WIDTH)
    )
    widen(transformer)
    pipe.register_modules(transformer=transformer, text_encoder=encoder, tokenizer=tokenizer)
    return pipe


MAKERS: dict[str, Callable[[str], Any]] = {
    "FluxFillPipeline": _flux,
    "FluxInpaintPipeline": _flux,
    "FluxKontextPipeline": _flux,
    "FluxControlInpaintPipeline": _flux,
    "QwenImageEditPipeline": _qwen_edit,
    "StableDiffusion3InpaintPipeline": _sd3,
    "ZImageInpaintPipeline": _zimage,
    "ZImageControlNetInpaintPipeline": _zimage,
    "BriaFibo2Pipeline": _fibo2,
    "JoyImageEditPipeline": _joyimage,
    "JoyImageEditPlusPipeline": _joyimage,
    "Kandinsky5I2IPipeline": _kandinsky,
    "Flux2KleinPipeline": _klein,
    "Flux2KleinInpaintPipeline": _klein,
}

_folders: list[tempfile.TemporaryDirectory] = []  # removed at exit


def without_torchvision(monkeypatch: Any) -> None:
    """Let pipelines be loaded whose processor needs torchvision for its videos."""
    for kind in (Qwen2VLProcessor, Qwen3VLProcessor):
        monkeypatch.setattr(transformers, kind.__name__, kind)


def with_small_shapes(monkeypatch: Any) -> None:
    """Let JoyImage bring photos to another shape than a megapixel's, and quickly."""
    monkeypatch.setattr(image_processor, "BUCKETS", {1024: [(224, 256)]})


@cache
def saved(name: str) -> Path:
    """A folder as `save_pretrained` leaves it."""
    _folders.append(tempfile.TemporaryDirectory())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MAKERS[name](name).save_pretrained(_folders[-1].name)
    return Path(_folders[-1].name)


@cache
def loaded(name: str) -> Any:
    """The pipeline that is saved under that name, in single precision."""
    from hilotoken import load_model

    pipe = load_model(saved(name), dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe
