"""The example workflows: `python comfyui/tests/workflows.py` writes them anew.

A workflow is written down here as nodes and what goes into each, and becomes what the page of
ComfyUI opens: nodes with places, widgets and links. `to_api` goes on to what a server runs.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

if __name__ == "__main__":
    import find_comfy

    find_comfy.add()

import find_comfy
import nodes as comfy_nodes

from comfyui import NODE_CLASS_MAPPINGS

FOLDER = find_comfy.HERE.parent / "example_workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote",)  # of the page alone: no server runs them
COLUMN, GAP, ROW = 340, 50, 26

Output = tuple[int, int]  # a node's number and which of its outputs


def known_nodes() -> dict[str, Any]:
    """ComfyUI's node classes, extra ones too, and ours."""
    if "FluxGuidance" not in comfy_nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(comfy_nodes.init_builtin_extra_nodes())
    return comfy_nodes.NODE_CLASS_MAPPINGS | NODE_CLASS_MAPPINGS


def inputs_of(kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name to type and options of each input, in the order of the node."""
    given = known_nodes()[kind].INPUT_TYPES()
    both = given.get("required", {}) | given.get("optional", {})
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in both.items()}


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def widget_names(kind: str) -> list[str]:
    """The names of a node's widgets, with the one that the page adds behind a seed."""
    names: list[str] = []
    for name, (given, options) in inputs_of(kind).items():
        if is_widget(given):
            names.append(name)
            names += ["control"] if options.get("control_after_generate") else []
    return names


@dataclass
class Workflow:
    """Nodes from left to right; `column()` begins the next column."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    x: int = 0
    y: int = 0

    def column(self, width: int = COLUMN) -> None:
        self.x, self.y = self.x + width + GAP, 0

    def add(self, kind: str, title: str | None = None, **given: Any) -> "Node":
        """A node with links and widgets by name; widgets not given are at their default."""
        number, slots, widgets = len(self.nodes) + 1, [], []
        for name, (type_, options) in inputs_of(kind).items():
            value = given.pop(name, None)
            if is_widget(type_):
                choices = type_ if isinstance(type_, list) else options.get("options")
                default = options.get("default", choices[0] if choices else "")
                widgets.append(default if value is None else value)
                widgets += ["fixed"] if options.get("control_after_generate") else []
            else:
                slots.append(
                    {
                        "name": name,
                        "type": str(type_),
                        "link": self._link(value, number, len(slots), type_),
                    }
                )
        assert not given, f"{kind} has no {list(given)}"
        node = self._node(kind, title, slots, widgets)
        returned = known_nodes()[kind].RETURN_TYPES
        names = getattr(known_nodes()[kind], "RETURN_NAMES", None) or returned
        node["outputs"] = [
            {"name": str(name), "type": str(type_), "links": [], "slot_index": i}
            for i, (name, type_) in enumerate(zip(names, returned, strict=True))
        ]
        return Node(number)

    def note(self, text: str) -> None:
        self._node(
            "MarkdownNote",
            "About",
            [],
            [text],
            height=40 + 22 * (len(text) // 38 + text.count("\n")),
        )

    def _node(self, kind, title, slots, widgets, height=0) -> dict[str, Any]:
        pictures = 260 if kind in ("PreviewImage", "SaveImage") else 0
        texts = 90 if kind in ("CLIPTextEncode", "TextEncodeQwenImageEditPlus", "PreviewAny") else 0
        rows = max(len(slots), 1) + len(widgets)
        height = height or 50 + rows * ROW + pictures + texts
        node = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": [self.x, self.y],
            "size": [COLUMN, height],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": slots,
            "outputs": [],
            "properties": {"Node name for S&R": kind},
            "widgets_values": widgets,
        }
        node |= {"title": title} if title else {}
        self.y += height + GAP
        self.nodes.append(node)
        return node

    def _link(self, value: Output | None, to: int, slot: int, type_: Any) -> int | None:
        if value is None:
            return None
        source, output = value
        self.links.append([len(self.links) + 1, source, output, to, slot, str(type_)])
        self.nodes[source - 1]["outputs"][output]["links"].append(len(self.links))
        return len(self.links)

    def json(self) -> str:
        whole = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        return json.dumps(whole, indent=1) + "\n"


@dataclass(frozen=True)
class Node:
    """A node that was added; indexing it gives one of its outputs."""

    number: int

    def __getitem__(self, output: int) -> Output:
        return self.number, output


def to_api(workflow: dict[str, Any]) -> dict[str, Any]:
    """What a server runs: each node's kind and inputs, links as [node, output]."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        names = widget_names(node["type"])
        given = dict(zip(names, node["widgets_values"], strict=True))
        given.pop("control", None)
        linked = {s["name"]: sources[s["link"]] for s in node["inputs"] if s["link"]}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": given | linked}
    return prompt


# The five.

YOURS = (
    "Put your own photo in: **Load Image** in place of *HiLo Example Photo*, and paint the mask "
    "with *Open in MaskEditor*.\n\n*HiLo* takes photo and mask from the sampler, so only the "
    "model goes through it. *HiLo Composite* puts your own pixels back outside the mask, bit for "
    "bit. *HiLo Tokens* shows what runs."
)


def begin(flow: Workflow, note: str) -> tuple[Output, Output]:
    """The photo and its mask, and what the workflow is."""
    flow.note(note + "\n\n" + YOURS)
    example = flow.add("HiLoExample")
    return example[0], example[1]


def finish(flow: Workflow, photo: Output, mask: Output, samples: Output, vae: Output) -> None:
    """From latents to the saved picture, and the map of the tokens."""
    decoded = flow.add("VAEDecode", samples=samples, vae=vae)
    whole = flow.add("HiLoComposite", photo=photo, edited=decoded[0], mask=mask)
    flow.column()
    flow.add("SaveImage", images=whole[0], filename_prefix="hilo")
    flow.column()
    tokens = flow.add("HiLoTokens", image=photo, mask=mask)
    flow.add("PreviewImage", images=tokens[0])
    flow.add("PreviewAny", "Counts", source=tokens[1])


def sampler(
    flow: Workflow, model: Output, positive: Output, negative: Output, latent: Output, **more: Any
) -> Output:
    given = {"sampler_name": "euler", "scheduler": "simple", "seed": 3, "cfg": 1.0} | more
    return flow.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **given
    )[0]


def embedded() -> Workflow:
    flow = Workflow()
    photo, mask = begin(
        flow,
        "# HiLo, with nothing downloaded\nRemoves what is under the mask, by the small model in "
        "the package. Press Run. Bypass *HiLo* (Ctrl+B) to see the same at full cost.",
    )
    flow.column()
    model = flow.add("HiLoEmbeddedModel")
    made = flow.add(
        "InpaintModelConditioning", positive=model[2], negative=model[2], vae=model[1],
        pixels=photo, mask=mask,
    )  # fmt: skip
    hilo = flow.add("HiLoModel", model=model[0], image=photo)
    flow.column()
    latents = sampler(flow, hilo[0], made[0], made[1], made[2], steps=8)
    finish(flow, photo, mask, latents, model[1])
    return flow


def flux_loaders(flow: Workflow, name: str) -> tuple[Output, Output, Output]:
    model = flow.add("UNETLoader", unet_name=name)
    clip = flow.add(
        "DualCLIPLoader", clip_name1="clip_l.safetensors",
        clip_name2="t5xxl_fp8_e4m3fn_scaled.safetensors", type="flux",
    )  # fmt: skip
    return model[0], clip[0], flow.add("VAELoader", vae_name="ae.safetensors")[0]


def fill() -> Workflow:
    flow = Workflow()
    photo, mask = begin(flow, "# FLUX.1 Fill\nThe mask is found in *Inpaint Model Conditioning*.")
    flow.column()
    model, clip, vae = flux_loaders(flow, "flux1-fill-dev.safetensors")
    text = flow.add("CLIPTextEncode", clip=clip, text="an empty desert")
    flow.column()
    guided = flow.add("FluxGuidance", conditioning=text[0], guidance=30.0)
    none = flow.add("ConditioningZeroOut", conditioning=text[0])
    made = flow.add(
        "InpaintModelConditioning", positive=guided[0], negative=none[0], vae=vae, pixels=photo,
        mask=mask,
    )  # fmt: skip
    hilo = flow.add("HiLoModel", model=model)
    flow.column()
    latents = sampler(flow, hilo[0], made[0], made[1], made[2], steps=20)
    finish(flow, photo, mask, latents, vae)
    return flow


def masked_latent(
    flow: Workflow, photo: Output, mask: Output, vae: Output
) -> tuple[Output, Output]:
    """The photo's latent, and the same with a noise mask."""
    encoded = flow.add("VAEEncode", pixels=photo, vae=vae)
    return encoded[0], flow.add("SetLatentNoiseMask", samples=encoded[0], mask=mask)[0]


def kontext() -> Workflow:
    flow = Workflow()
    photo, mask = begin(
        flow,
        "# FLUX.1 Kontext, inside a mask\nThe sampler starts from the photo's own latent with a "
        "noise mask; the same latent is the reference, so HiLo shortens both.",
    )
    flow.column()
    model, clip, vae = flux_loaders(flow, "flux1-dev-kontext_fp8_scaled.safetensors")
    text = flow.add("CLIPTextEncode", clip=clip, text="remove the people")
    flow.column()
    latent, masked = masked_latent(flow, photo, mask, vae)
    seen = flow.add("ReferenceLatent", conditioning=text[0], latent=latent)
    guided = flow.add("FluxGuidance", conditioning=seen[0], guidance=2.5)
    none = flow.add("ConditioningZeroOut", conditioning=text[0])
    hilo = flow.add("HiLoModel", model=model)
    flow.column()
    latents = sampler(flow, hilo[0], guided[0], none[0], masked, steps=20)
    finish(flow, photo, mask, latents, vae)
    return flow


def qwen_edit() -> Workflow:
    flow = Workflow()
    photo, mask = begin(
        flow,
        "# Qwen-Image-Edit 2509, inside a mask\nThe text encoder sees the photo, but is given no "
        "VAE: the reference is the latent that is sampled, so HiLo shortens both.",
    )
    flow.column()
    loaded = flow.add("UNETLoader", unet_name="qwen_image_edit_2509_fp8_e4m3fn.safetensors")
    clip = flow.add(
        "CLIPLoader", clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors", type="qwen_image"
    )
    vae = flow.add("VAELoader", vae_name="qwen_image_vae.safetensors")
    shifted = flow.add("ModelSamplingAuraFlow", model=loaded[0], shift=3.0)
    normed = flow.add("CFGNorm", model=shifted[0])
    flow.column()
    latent, masked = masked_latent(flow, photo, mask, vae[0])
    seen = []
    for title, text in (("Prompt", "remove the people"), ("Negative prompt", "")):
        encode = flow.add(
            "TextEncodeQwenImageEditPlus", title, clip=clip[0], image1=photo, prompt=text
        )
        seen.append(flow.add("ReferenceLatent", conditioning=encode[0], latent=latent)[0])
    hilo = flow.add("HiLoModel", model=normed[0])
    flow.column()
    latents = sampler(flow, hilo[0], *seen, masked, steps=20, cfg=2.5)
    finish(flow, photo, mask, latents, vae[0])
    return flow


def z_image() -> Workflow:
    flow = Workflow()
    photo, mask = begin(
        flow,
        "# Z-Image-Turbo, inpainting\nThe photo's latent with a noise mask, and Differential "
        "Diffusion for its rim. A lower *denoise* keeps more of what was there.",
    )
    flow.column()
    loaded = flow.add("UNETLoader", unet_name="z_image_turbo_bf16.safetensors")
    clip = flow.add("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2")
    vae = flow.add("VAELoader", vae_name="ae.safetensors")
    text = flow.add("CLIPTextEncode", clip=clip[0], text="an empty desert, sand and dry grass")
    none = flow.add("ConditioningZeroOut", conditioning=text[0])
    flow.column()
    _, masked = masked_latent(flow, photo, mask, vae[0])
    shifted = flow.add("ModelSamplingAuraFlow", model=loaded[0], shift=3.0)
    soft = flow.add("DifferentialDiffusion", model=shifted[0])
    hilo = flow.add("HiLoModel", model=soft[0])
    flow.column()
    latents = sampler(flow, hilo[0], text[0], none[0], masked, steps=8)
    finish(flow, photo, mask, latents, vae[0])
    return flow


WORKFLOWS = {
    "embedded": embedded,
    "flux_fill": fill,
    "flux_kontext": kontext,
    "qwen_image_edit": qwen_edit,
    "z_image_inpaint": z_image,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, build in WORKFLOWS.items():
        (FOLDER / f"{name}.json").write_text(build().json())
