"""Host time that compressing adds: to a step around the transformer, to an attention inside it.

`python benchmarks/overhead.py -o FILE.csv`: a FLUX Inpaint pipeline of tiny tensors, whose
transformer does nothing, so that what is left of a call is what is put around it. On a GPU the host
issues the same operations, each a launch; whether they hide behind the device's own work is for a
trace there to say. One thread; methods take turns, round by round, and medians are kept. With
`--source NAME=FOLDER`, sources of hilotoken by name, such as before and after, take turns too, each
turn a process of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
)
from PIL import Image

from hilotoken import compress
from hilotoken.attention import Weighted
from hilotoken.bench.results.rows import append_rows
from hilotoken.methods.parse import method_from

METHODS = (
    "hilo coarse=0", "hilo", "hilo positions=aligned weights=True", "hilo coarse=0 refresh=3",
    "hilo context=sampled detail=0 refresh=3", "tome",
)  # fmt: skip
SIZE, STEPS, TEXT = 256, 8, 6


@dataclass(frozen=True)
class OverheadRow:
    """Microseconds of the host: median, and the quartiles around it.

    source: of hilotoken, by its name
    what: a method's text, for what it adds to a call of the transformer after a run's first; or
          what is put around an attention call
    """

    source: str
    what: str
    rounds: int
    median_us: float
    lower_us: float
    upper_us: float


class Nothing(FluxTransformer2DModel):
    """Answers at once. `spent`: seconds of every call around its forward."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.spent: list[float] = []
        self.inside = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        output = super().__call__(*args, **kwargs)
        self.spent.append(time.perf_counter() - started - self.inside)
        return output

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        started = time.perf_counter()
        output = hidden_states * 0
        self.inside = time.perf_counter() - started
        return (output,)


Nothing.__name__ = "FluxTransformer2DModel"  # by which a pipeline's family is known


def pipeline(kind: type[FluxTransformer2DModel] = Nothing) -> Any:
    transformer = kind(
        in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
    )  # fmt: skip
    none: Any = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = FluxInpaintPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,  # pyright: ignore[reportArgumentType]
        transformer=transformer,
        **none,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def step_microseconds(pipe: Any, method: Any) -> list[float]:
    """Of every call of the transformer after the first of a run."""
    pipe.transformer.spent.clear()
    edit(pipe, method)
    return [1e6 * seconds for seconds in pipe.transformer.spent[1:]]


def edit(pipe: Any, method: Any) -> None:
    """A run by the method, or of the pipeline alone where there is none."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[90:160, 70:150] = 255
    run = compress(pipe, method) if method else pipe
    run(
        image=Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8)),
        mask_image=Image.fromarray(mask),
        prompt_embeds=torch.zeros(1, TEXT, 16),
        pooled_prompt_embeds=torch.zeros(1, 16),
        height=SIZE,
        width=SIZE,
        strength=1.0,
        num_inference_steps=STEPS,
        output_type="latent",
    )


def attention_microseconds(weighted: bool, calls: int = 200) -> list[float]:
    """Of what weights put around an attention of tiny tensors, which itself does nothing."""
    query, key, value = torch.randn(3, 1, 64, 2, 16).unbind()
    attend = Weighted(torch.rand(64) + 1)
    original: Callable[..., Any] = lambda query, key, value, **kwargs: value  # noqa: E731
    module: Any = None
    found = []
    for _ in range(calls):
        started = time.perf_counter()
        if weighted:
            attend(module, query, key, value, original)
        else:
            original(query, key, value)
        found.append(1e6 * (time.perf_counter() - started))
    return found


Samples = dict[str, list[float]]  # microseconds, by what was measured


def measured(methods: Sequence[str], rounds: int) -> Samples:
    """Here, in this process."""
    torch.set_num_threads(1)
    chosen: Mapping[str, Any] = {name: method_from(*name.split()) for name in methods}
    pipe = pipeline()
    measures: dict[str, Callable[[], list[float]]] = {
        name: lambda method=method: step_microseconds(pipe, method)
        for name, method in {"the pipeline alone": None, **chosen}.items()
    }
    measures["attention: nothing"] = lambda: attention_microseconds(False)
    measures["attention: weights"] = lambda: attention_microseconds(True)
    found: Samples = {name: [] for name in measures}
    with torch.no_grad():
        for round in range(rounds + 1):
            for name, measure in measures.items():
                seen = measure()
                found[name] += seen if round else []  # the first warms up
    return found


def measured_of(source: Path, methods: Sequence[str]) -> Samples:
    """Two rounds of another source, in a process of its own."""
    command = [sys.executable, __file__, "--rounds", "2", "--samples"]
    command += [word for name in methods for word in ("--method", name)]
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A CSV.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; with sources, turns of two.", min=1)] = 20,
    method: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    sources: Annotated[list[str] | None, typer.Option("--source", help="NAME=FOLDER")] = None,
    samples: Annotated[bool, typer.Option(help="Print what was measured as JSON.")] = False,
) -> None:
    """Measure what compressing adds on the host."""
    names: Sequence[str] = method or METHODS
    if samples:
        print(json.dumps(measured(names, rounds)))
        return
    found: dict[str, Samples] = {}
    if sources:
        for _ in range(rounds):
            for text in sources:
                source, _, folder = text.partition("=")
                kept = found.setdefault(source, {})
                for what, seen in measured_of(Path(folder), names).items():
                    kept[what] = kept.get(what, []) + seen
    else:
        found["this"] = measured(names, rounds)
    rows = []
    for source, kept in found.items():
        for what, seen in kept.items():
            lower, _, upper = quantiles(seen, n=4)
            rows.append(OverheadRow(source, what, rounds, median(seen), lower, upper))
            print(f"{source}: {median(seen):8.1f} us ({lower:.1f} to {upper:.1f})  {what}")
    if output:
        append_rows(output, rows)


if __name__ == "__main__":
    typer.run(main)
