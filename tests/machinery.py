"""diffusers' own machinery, put around the transformer of a pipeline."""

from typing import Any

import torch
from peft import LoraConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_

ADAPTED = (".to_q", ".to_v", ".to_query", ".to_value")  # what low rank is put on


def offload_models(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_groups(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
    )


def cast_layerwise(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def weights_of_eight_bits(pipe: Any) -> None:
    quantize_(pipe.transformer, Int8WeightOnlyConfig())


def low_rank(pipe: Any) -> None:
    linear = torch.nn.Linear
    layers = [n for n, m in pipe.transformer.named_modules() if isinstance(m, linear)]
    names = [name for name in layers if name.endswith(ADAPTED)]
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))


def low_rank_fused(pipe: Any) -> None:
    low_rank(pipe)
    pipe.transformer.fuse_lora()


def another_backend(pipe: Any) -> None:
    pipe.transformer.set_attention_backend("_native_math")


MACHINERY = [
    offload_models, offload_groups, cast_layerwise, weights_of_eight_bits, low_rank,
    low_rank_fused, another_backend,
]  # fmt: skip
