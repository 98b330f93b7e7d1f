"""A run: captured when the sampler starts, shortened at each call of the model.

Two wrappers, both of ComfyUI's own (`comfy.patcher_extension`). SAMPLER_SAMPLE sees the source
latents, the noise and the mask as the model sees them, so nothing need be given to the node.
APPLY_MODEL sees x_t and gives back the denoised picture: there, a dropped token is the source. What
belongs to a run lies in that run's own `transformer_options`, and goes with it.

N tokens of the grid, S of the short sequence, D channels a token.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from hilotoken.methods import plan_tokens
from hilotoken.methods.hilo import HiLo
from hilotoken.methods.refresh import Refresh, refresh_steps
from hilotoken.plan import TokenPlan

from .attend import Attention, Cache, overridden
from .places import FAMILIES, Family, Span, short_places
from .ribbon import grid_of, noisy_rows, put_back, rows, to_ribbon, to_tokens
from .source import pixels

KEY = "hilotoken"


@dataclass(frozen=True)
class Wanted:
    """What the node was given; shared by all its runs, never written to.

    image: [B, H, W, 3] in [0, 1]; mask: [B, H, W] in [0, 1]
    """

    method: HiLo
    image: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `apply_model`."""

    x: Tensor
    sigma_B: Tensor
    concat: Tensor | None
    text: Tensor | None
    control: dict[str, list[Tensor | None]] | None
    options: dict[str, Any]
    rest: dict[str, Any]

    def to(self, model: Callable[..., Tensor]) -> Tensor:
        """Hand it over."""
        return model(
            self.x, self.sigma_B, self.concat, self.text, self.control, self.options, **self.rest
        )

    @property
    def references(self) -> list[Tensor]:
        return self.rest.get("ref_latents") or []


@dataclass
class Run:
    """One sampling run.

    source: x0 in the model's units; patch: latents a side of a token; said: reasons logged already
    """

    method: HiLo
    plan: TokenPlan
    source: Tensor
    patch: int
    family: Family
    noise_1MD: Tensor
    places: dict[Any, Tensor] = field(default_factory=dict)  # by kind of call
    caches: dict[Any, Cache] = field(default_factory=dict)  # by the conditionings of a call
    said: set[str] = field(default_factory=set)

    @property
    def edit(self) -> TokenPlan:
        """The plan of the edit tokens alone, for the steps between refreshes."""
        keep_K = self.plan.keep_K[self.plan.edit_N[self.plan.keep_K]]
        none, ones = keep_K[:0], torch.ones(len(keep_K), device=keep_K.device)
        return replace(self.plan, keep_K=keep_K, cells_M=none, count_S=ones)

    def is_due(self, call: Call) -> bool:
        """Whether context is to be computed at this step."""
        sigmas = call.options["sample_sigmas"][:-1]
        step = int((sigmas >= call.sigma_B[0] - 1e-6).sum()) - 1
        return step in refresh_steps(self.method.refresh.at, sigmas.tolist())  # type: ignore[union-attr]

    def say(self, reason: str) -> None:
        """Log once a run that a call stays dense, and why."""
        if reason not in self.said:
            logging.warning(f"HiLo: runs on all tokens here: {reason}")
        self.said.add(reason)


def attach(model: Any, wanted: Wanted) -> None:
    """Put both wrappers on a model that was cloned; they replace those of another HiLo node.

    Raises:
        ValueError: an option that is not to be had in ComfyUI.
    """
    _check(wanted.method)
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in (
        (kinds.SAMPLER_SAMPLE, _sampler_wrapper(wanted)),
        (kinds.APPLY_MODEL, _apply),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)


def _check(method: HiLo) -> None:
    refresh: Any = method.refresh or Refresh(1)
    for said, is_refused, instead in (
        ("positions='aligned'", method.positions == "aligned", "'interpolated' or 'native'"),
        ("refresh='auto'", refresh.at == "auto", "a count of steps"),
        ("refresh.text=True", refresh.text, "False"),
        (f"refresh.blocks={refresh.blocks!r}", refresh.blocks != "all", "'all'"),
    ):
        if is_refused:
            raise ValueError(f"{said} is not available in ComfyUI: use {instead}")


def _sampler_wrapper(wanted: Wanted) -> Callable[..., Any]:
    def begin(
        executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any,
        noise: Tensor, latent_image: Tensor | None = None, denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Any:  # fmt: skip
        given = extra_args["model_options"]
        options = given.get("transformer_options", {})
        _check_beside(wanted.method, options)
        run = _make_run(wanted, guider, noise, latent_image, denoise_mask)
        given = given | {"transformer_options": options | {KEY: run}}
        extra_args = extra_args | {"model_options": given}
        return executor(
            guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )

    return begin


def _check_beside(method: HiLo, options: dict[str, Any]) -> None:
    """EasyCache compares one call's tokens with the last one's, and refreshes change them."""
    inside = options.get("wrappers", {}).get(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, {})
    if method.refresh is not None and inside.get("easycache"):
        raise ValueError(
            "HiLo: this preset computes context at a few steps alone, which changes how many "
            "tokens run, and EasyCache needs them alike: take EasyCache out, or set refresh to 0"
        )


def _make_run(
    wanted: Wanted, guider: Any, noise: Tensor, latent: Tensor | None, mask: Tensor | None
) -> Run:
    model = guider.inner_model.diffusion_model
    name = type(getattr(model, "_orig_mod", model)).__name__
    if name not in FAMILIES:
        raise ValueError(f"HiLo does not know {name}; it knows {', '.join(FAMILIES)}")
    if latent is None or not torch.count_nonzero(latent):
        raise ValueError(
            "HiLo needs the photo's latent at the sampler, got an empty one: connect VAE Encode's "
            "or Inpaint Model Conditioning's"
        )
    if latent.ndim == 5 and latent.shape[2] > 1:
        raise ValueError(f"HiLo edits one picture, and this latent has {latent.shape[2]} frames")
    p = model.patch_size
    grid = grid_of(latent, p)
    photo, edited = pixels(wanted.image, wanted.mask, guider, latent, mask, p)
    plan = plan_tokens(photo, edited, grid=grid, method=wanted.method).to(latent.device)
    logging.info(f"HiLo: {plan.tokens_run} of {plan.tokens_full} tokens run, {plan.counts}")
    private = torch.Generator().manual_seed(0)  # the user's noise stays as it is
    width = latent.shape[1] * p * p
    noise_1MD = torch.randn(1, len(plan.cells_M), width, generator=private).to(latent.device)
    return Run(wanted.method, plan, latent, p, FAMILIES[name], noise_1MD)


def _apply(
    executor: Any, x: Tensor, t: Tensor, c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None, control: Any = None, transformer_options: Any = None,
    **rest: Any,
) -> Tensor:  # fmt: skip
    call = Call(x, t, c_concat, c_crossattn, control, transformer_options or {}, rest)
    run: Run | None = call.options.get(KEY)
    if run is None:
        return call.to(executor)
    if reason := _why_dense(run, call):
        run.say(reason)
        return call.to(executor)
    return _shortened(run, executor, call)


def _why_dense(run: Run, call: Call) -> str | None:
    """What is asked of the model that cannot be done on a part of its tokens; None if nothing."""
    if call.x.shape[-2:] != run.source.shape[-2:]:
        (h, w), (height, width) = call.x.shape[-2:], run.source.shape[-2:]
        return f"an area or a tile of {w}x{h} latents is sampled, of {width}x{height}"
    patches = call.options.get("patches", {})
    for place in ("double_block", "noise_refiner"):
        for patch in patches.get(place, ()):
            return f"{type(patch).__name__} adds to all tokens of the picture, at {place}"
    if call.references and not run.family.references:
        return "what this model does with references is not known here"
    return None


def _shortened(run: Run, executor: Any, call: Call) -> Tensor:
    """One call on the tokens that run; the others are the source."""
    model, p = executor.class_obj.diffusion_model, run.patch
    model = getattr(model, "_orig_mod", model)
    plan, noise_1MD, spans = run.plan, run.noise_1MD, _spans(run, call)
    refresh, cache = True, None
    if run.method.refresh is not None:
        _check_masks(call)
        key = (len(call.x), tuple(call.options.get("uuids", ())))
        refresh = run.is_due(call) or key not in run.caches
        if refresh:
            run.caches[key] = _new_cache(run, model, spans)
        cache = run.caches[key]
    if not refresh:
        plan, noise_1MD, spans = run.edit, noise_1MD[:, :0], spans[:1]
        rest = {name: value for name, value in call.rest.items() if name != "ref_latents"}
        call = replace(call, rest=rest)
    places = _places(run, executor, model, call, plan, spans)
    padding = run.family.padding(model, sum(span.run(plan) for span in spans))
    short = _short_call(run, call, plan, spans, noise_1MD)
    counts_T = _counts(run, model, plan, spans, own_padding=refresh)
    if cache is not None or bool((counts_T != 1).any()):
        whole = places.shape[1] + padding if run.family.joint else None
        alone = run.family.text_alone(model)
        attention = Attention(whole, counts_T, alone, cache, refresh)
        short = replace(short, options=overridden(short.options, attention))
    with run.family.give(model, places, padding):
        out = short.to(executor)
    many = [len(out) // len(run.source)] + [1] * (out.ndim - 1)
    return put_back(out, run.source.to(out).repeat(many), plan, p)


def _short_call(
    run: Run, call: Call, plan: TokenPlan, spans: list[Span], noise_1MD: Tensor
) -> Call:
    """The call with ribbons for pictures."""
    p, rest = run.patch, dict(call.rest)

    def ribbon(picture: Tensor) -> Tensor:
        return to_ribbon(rows(to_tokens(picture, p), plan), p, picture)

    if call.references:
        pairs = zip(call.references, spans[1:], strict=True)
        rest["ref_latents"] = [ribbon(ref) if span.short else ref for ref, span in pairs]
    if _is_whole_mask(rest.get("attention_mask")):
        rest["attention_mask"] = _short_mask(rest["attention_mask"], plan)
    x_BSD = noisy_rows(to_tokens(call.x, p), plan, noise_1MD, call.sigma_B, p)
    control = call.control and {
        name: [None if row is None else rows(row, plan) for row in residuals]
        for name, residuals in call.control.items()
    }
    concat = None if call.concat is None else ribbon(call.concat)
    return replace(call, x=to_ribbon(x_BSD, p, call.x), concat=concat, control=control, rest=rest)


def _spans(run: Run, call: Call) -> list[Span]:
    """The pictures of a call, the target first."""
    spans = [Span(run.plan.tokens_full, True)]
    for ref in call.references:
        h, w = grid_of(ref, run.patch)
        spans.append(Span(h * w, _is_source(ref, run)))
    return spans


def _is_source(ref: Tensor, run: Run) -> bool:
    """Whether a reference is the photo that is edited, on its grid."""
    if run.plan.references != "compressed" or ref.shape[-2:] != run.source.shape[-2:]:
        return False
    one = ref.reshape(-1, *run.source.shape[1:])[:1]
    return torch.allclose(one.float(), run.source[:1].to(one).float(), rtol=1e-2, atol=1e-2)


def _places(
    run: Run, executor: Any, model: Any, call: Call, plan: TokenPlan, spans: list[Span]
) -> Tensor:
    """The places of the tokens that run, asked of the model once for each kind of call."""
    text = () if call.text is None else tuple(call.text.shape)
    shapes = tuple(tuple(ref.shape) for ref in call.references)
    key = (len(call.x), text, shapes, tuple(spans), plan.tokens_run)
    if key not in run.places:
        bare = call.options | {"wrappers": {}}  # a question, not for other nodes' eyes
        question = replace(call, control=None, options=bare)
        ids_BLA = run.family.ask(model, lambda: question.to(executor.original))
        padding = run.family.padding(model, sum(span.tokens for span in spans))
        run.places[key] = short_places(ids_BLA, plan, spans, padding)
    return run.places[key]


def _new_cache(run: Run, model: Any, spans: list[Span]) -> Cache:
    """For the keys and values of all but the edit tokens of the target."""
    plan = run.plan
    counts_T = _counts(run, model, plan, spans)
    context_T = counts_T > 0
    context_T[: len(plan.keep_K)] &= ~plan.edit_N[plan.keep_K]
    context_X = context_T.nonzero().flatten()
    return Cache(context_X, counts_T[context_X], run.method.refresh.store)  # type: ignore[union-attr]


def _counts(
    run: Run, model: Any, plan: TokenPlan, spans: list[Span], own_padding: bool = True
) -> Tensor:
    """How many tokens each of image and padding stands for: [T].

    A model that pads lets its tokens attend to that. As much is seen as the whole picture has, and
    the rest hidden; of edit tokens alone none, since what was kept has some.
    """
    ones = plan.count_S.new_ones
    short = plan.count_S if plan.weighted else ones(plan.tokens_run)
    parts = [short if span.short else ones(span.tokens) for span in spans]
    padding = run.family.padding(model, sum(len(part) for part in parts))
    whole = run.family.padding(model, sum(span.tokens for span in spans))
    seen_P = torch.arange(padding, device=short.device) < (whole if own_padding else 0)
    return torch.cat([*parts, seen_P.to(short)])


def _is_whole_mask(mask: Tensor | None) -> bool:
    """Whether it is one of queries and keys, as a style model gives, and not of text alone."""
    return mask is not None and mask.ndim > 2 and mask.shape[-1] == mask.shape[-2] > 1


def _short_mask(mask: Tensor, plan: TokenPlan) -> Tensor:
    """A mask of queries and keys for the tokens that run; a coarse one is masked as its cell."""
    (_, w), stride = plan.grid, max(plan.stride, 1)
    across = -(-w // stride)
    row, column = plan.cells_M // across, plan.cells_M % across
    index_S = torch.cat([plan.keep_K, stride * (row * w + column)])
    text = mask.shape[-1] - plan.tokens_full
    index = torch.cat([torch.arange(text, device=index_S.device), index_S + text]).to(mask.device)
    return mask.index_select(-2, index).index_select(-1, index)


def _check_masks(call: Call) -> None:
    if _is_whole_mask(call.rest.get("attention_mask")):
        raise ValueError(
            "HiLo: this preset keeps keys and values from step to step, which the attention mask "
            "of a style model does not allow: set refresh to 0, or the style model's type of "
            "strength to 'multiply'"
        )
