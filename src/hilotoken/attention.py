"""The attention call in diffusers' processors, replaced for a while, on any attention backend.

A processor's own code runs as it is, with its attention function alone exchanged, so that whatever
it does around it (projections, norms, rotary places, joint text) stays right without a copy.

B batch, Q queries, S keys, H heads, D channels a head.
"""

import inspect
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hooks import compiling, unwrap

_PLACES = ("image_rotary_emb", "freqs_cis", "rotary_emb")  # what processors call them

# attend(module, query_BQHD, key_BSHD, value_BSHD, original, **kwargs) -> [B, Q, H, D]
Attend = Callable[..., Tensor]
# again(output, redo) -> output, where redo(rotary) attends once more with other rotary places
Again = Callable[[Any, Callable[[Any], Any]], Any]
# What a context brings: attend, again, places, the thread that entered it
Level = tuple[Attend, Again | None, Callable[[], Any] | None, int]


@contextmanager
def rerouted(
    transformer: nn.Module,
    attend: Attend,
    modules: Iterable[nn.Module] | None = None,
    again: Again | None = None,
    places: Callable[[], Any] | None = None,
) -> Iterator[None]:
    """Every attention call inside the transformer goes through `attend`, for this context.

    `attend(module, query, key, value, original, **kwargs)` stands in for the processor's attention
    function. Query, key and value are [B, Q, H, D] and [B, S, H, D] whatever that function takes,
    and `original(query, key, value, **kwargs)` is that function in these shapes: calling it with
    what came is the identity, bit for bit. `kwargs` are the processor's own (mask, backend ...). A
    processor that attends twice, as one for image prompts does, comes by twice.

    Contexts nest: the one entered last is asked first, and its `original` is the one before. The
    backend chosen by `set_attention_backend` stays in force. Calls from other threads pass by;
    compiled code cannot tell threads apart.

    Args:
        transformer: a diffusers model
        attend: see above
        modules: the attention modules meant, all of the transformer's unless given
        again: `again(output, redo)` gives what the processor returns, of what it would return;
            `redo(rotary)` runs it once more with other rotary places (`image_rotary_emb`)
        places: gives the rotary places that stand in for the processor's; `EachOwn` where parts of
            the batch have places of their own

    Raises:
        TypeError: a processor calls no attention function that is known here.
    """
    model = unwrap(transformer)
    chosen = list(_attention_modules(model) if modules is None else modules)
    with _LOCK:
        router = _ROUTERS.setdefault(model, _Router())
    level: Level = (attend, again, places, get_ident())
    with ExitStack() as stack:
        for module in chosen:
            router.enter(module, level)
            stack.callback(router.leave, module, level)
        yield


@contextmanager
def aside(transformer: nn.Module) -> Iterator[None]:
    """Attention calls of this thread pass by everything that reroutes them, for this context.

    For a model that shares modules with the transformer, such as its ControlNet.
    """
    router = _ROUTERS.setdefault(unwrap(transformer), _Router())
    before = router.aside, getattr(router.here, "aside", False)
    router.aside = router.here.aside = True
    try:
        yield
    finally:
        router.aside, router.here.aside = before


class _Router:
    """What the stand-ins of one transformer have in common.

    One class stands in for all processors of a class, and its functions are made once. What a
    module's contexts bring is on its own stand-in, and no module is known by its identity: compiled
    blocks need no new graph, neither from block to block nor from run to run.
    """

    def __init__(self) -> None:
        self.under_way: Any = None  # the stand-in and its module, in compiled code
        self.aside = False  # whether its calls pass by, see `aside`
        self.here = threading.local()  # the same two, of each thread
        self.classes: dict[type, type] = {}
        self.replaced: dict[int, tuple[Any, Any]] = {}  # by module: its processor, the stand-in
        self.lock = threading.Lock()

    def enter(self, module: Any, level: Level) -> None:
        """Put a stand-in in the place of the module's processor, unless one is there."""
        with self.lock:
            if id(module) not in self.replaced:
                self.replaced[id(module)] = module.processor, self.stand_in(module.processor)
            _, stand_in = self.replaced[id(module)]
            # A new tuple each time: another thread may be going through the old one.
            stand_in.levels = (*stand_in.levels, level)
            module.processor = stand_in

    def leave(self, module: Any, level: Level) -> None:
        """The last to leave puts the processor back, who need not be the first that entered."""
        with self.lock:
            processor, stand_in = self.replaced[id(module)]
            stand_in.levels = tuple(other for other in stand_in.levels if other is not level)
            if not stand_in.levels:
                del self.replaced[id(module)]
                module.processor = processor

    def stand_in(self, processor: Any) -> Any:
        """A processor that runs the given one's code and shares its attributes."""
        kind = type(processor)
        if kind not in self.classes:
            self.classes[kind] = self._class_for(kind)
        made = object.__new__(self.classes[kind])
        object.__setattr__(made, "__dict__", vars(processor))
        made.levels = ()
        return made

    def asks(self, owner: int) -> bool:
        """Whether a call goes to what that thread has put in its way."""
        if compiling():
            return not self.aside
        return get_ident() == owner and not getattr(self.here, "aside", False)

    def _class_for(self, kind: type) -> type:
        own: Any = kind.__call__
        names = set(own.__code__.co_names)
        scope = dict(own.__globals__)
        if "dispatch_attention_fn" in names:
            scope["dispatch_attention_fn"] = self._route(scope["dispatch_attention_fn"], _same)
        elif {"F", "scaled_dot_product_attention"} <= names:
            functional: Any = types.ModuleType("functional")
            vars(functional).update(vars(scope["F"]))
            plain = functional.scaled_dot_product_attention
            functional.scaled_dot_product_attention = self._route(plain, _swap)
            scope["F"] = functional
        else:
            raise TypeError(
                f"{kind.__name__} calls no attention function that can be replaced: "
                f"set another attention processor"
            )
        for name in names & scope.keys():
            if name.startswith("apply_rotary_emb"):
                scope[name] = _each_own(scope[name])
        # With a name, torch.compile would look these globals up in the module of that name.
        scope.pop("__name__", None)
        rerun: Any = types.FunctionType(
            own.__code__, scope, own.__name__, own.__defaults__, own.__closure__
        )
        rerun.__kwdefaults__ = own.__kwdefaults__

        signature = inspect.signature(own)
        takes = list(signature.parameters)
        places_name = next((name for name in _PLACES if name in takes), _PLACES[0])
        rotary = takes.index(places_name) - 2 if places_name in takes else len(takes)

        def call(this: Any, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                self.under_way = this, attn
            else:
                self.here.under_way = this, attn

            def redo(places: Any) -> Any:
                if len(args) > rotary:
                    changed = (*args[:rotary], places, *args[rotary + 1 :])
                    return rerun(this, attn, *changed, **kwargs)
                return rerun(this, attn, *args, **kwargs | {places_name: places})

            own = [places for *_, places, owner in this.levels if places and self.asks(owner)]
            output = redo(own[-1]()) if own else rerun(this, attn, *args, **kwargs)
            for _, again, _, owner in this.levels:
                if again and self.asks(owner):
                    output = again(output, redo)
            return output

        # Attention modules read from it which arguments the processor takes.
        call.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        return type(kind.__name__, (kind,), {"__call__": call, "__slots__": ("levels",)})

    def _route(self, plain: Callable[..., Tensor], turn: Callable[[Tensor], Tensor]) -> Attend:
        def innermost(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
            return turn(plain(turn(query), turn(key), turn(value), **kwargs))

        def route(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
            this, module = self.under_way if compiling() else self.here.under_way
            attention = innermost
            for attend, _, _, owner in this.levels:
                if self.asks(owner):
                    attention = _around(attend, module, attention)
            return turn(attention(turn(query), turn(key), turn(value), **kwargs))

        return route


class EachOwn(tuple[Any, ...]):
    """Rotary places of each of so many equal parts of a batch, for its first tokens."""


def _each_own(rotate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A processor's function that turns by rotary places, which takes `EachOwn` too."""

    def turn(x_BSHD: Tensor, places: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(places, EachOwn):
            return rotate(x_BSHD, places, *args, **kwargs)
        made = []
        for part, own in zip(x_BSHD.chunk(len(places)), places, strict=True):
            length = (own[0] if isinstance(own, tuple) else own).shape[0]
            turned = rotate(part[:, :length], own, *args, **kwargs)
            made.append(filled_up(turned, part.shape[1] - length))
        return torch.cat(made)

    return turn


def filled_up(x_BS: Tensor, fill: int) -> Tensor:
    """A sequence [B, S, ...] with so many more of its last token."""
    return torch.cat([x_BS, x_BS[:, -1:].expand(-1, fill, *x_BS.shape[2:])], 1) if fill else x_BS


_ROUTERS: WeakKeyDictionary[nn.Module, _Router] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _around(attend: Attend, module: Any, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda query, key, value, **kwargs: attend(module, query, key, value, original, **kwargs)


def _same(x_BSHD: Tensor) -> Tensor:
    return x_BSHD


def _swap(x_BHSD: Tensor) -> Tensor:
    """[B, H, S, D], as PyTorch's function takes it, and back; a view."""
    return x_BHSD.transpose(1, 2)


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if getattr(m, "processor", None) is not None]


def log_count_columns(count_S: Tensor, key: Tensor, scale: float) -> Tensor:
    """The channels to put beside keys that count as many: see `with_log_counts`.

    Args:
        count_S: [S] or [B, S], above 0
        key: [B, S, H, D]
        scale: of the logits

    Returns:
        hi, lo and zeros, [B, S, H, C], where D + C is the next multiple of 8 that holds both; a
        view of [S, C] or [B, S, C].
    """
    wanted_S = (count_S.float().log() / scale)[..., None, None]
    high_S = wanted_S.to(key.dtype)
    low_S = (wanted_S - high_S).to(key.dtype)
    D = key.shape[-1]
    spare = -(-(D + 2) // 8) * 8 - D
    columns_S = F.pad(torch.cat([high_S, low_S], -1), (0, spare - 2))
    return columns_S.expand(*key.shape[:-1], -1)


def with_log_counts(
    query: Tensor, key: Tensor, value: Tensor, columns_BSHC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in which a key counts as many, without a mask on the attention.

    The logits become scale q.k + log(count), as if each key stood there `count` times: the weight
    of a sampled key (Horvitz and Thompson 1952), ToMe's proportional attention (arXiv 2210.09461,
    equation 1). A mask would say the same, but flash attention takes none. Here it is in spare
    channels: query [q, 1, 1, 1 ...] and key [k, hi, lo, 0 ...] with hi + lo = log(count) / scale,
    split in two so that half precision holds it to 16 bits. Exact but for rounding.

    The cost: D channels become the next multiple of 8 that holds D + 2, 8 more for the usual D, in
    QK^T as in AV, since fused kernels want one D. Some kernels go in greater leaps (flash attention
    2 from 128 to 160), and those that end at 128 (cuDNN before Hopper) are not to be had.

    Args:
        query: [B, Q, H, D]
        key, value: [B, S, H, D]
        columns_BSHC: of `log_count_columns`, for these keys and this scale

    Returns:
        The three, padded. Hand over the scale with them, and cut the result back to D channels.
    """
    spare = columns_BSHC.shape[-1]
    return (
        F.pad(query, (0, spare), value=1.0),
        torch.cat([key, columns_BSHC], -1),
        F.pad(value, (0, spare)),
    )


class Weighted:
    """For `rerouted`: every key counts as many, see `with_log_counts`. [S] or [B, S], above 0.

    What is put beside the keys is made at the first attention, and serves all that follow.
    """

    def __init__(self, count_S: Tensor) -> None:
        self.count_S = count_S
        self._columns: dict[tuple[Any, ...], Tensor] = {}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, original: Any, **kwargs: Any
    ) -> Tensor:
        scale = kwargs.pop("scale", None)
        scale = key.shape[-1] ** -0.5 if scale is None else scale
        given = with_log_counts(query, key, value, self._beside(key, scale))
        kwargs = _able(kwargs, given[1].shape[-1])
        output = original(*given, scale=scale, **kwargs)[..., : value.shape[-1]]
        return output.contiguous()  # which some processors count on

    def _beside(self, key: Tensor, scale: float) -> Tensor:
        if compiling():  # which fuses it, and would be compiled anew for what was made before
            return log_count_columns(self.count_S, key, scale)
        wanted = key.shape, key.dtype, scale
        if wanted not in self._columns:
            self._columns[wanted] = log_count_columns(self.count_S, key, scale)
        return self._columns[wanted]


# The widest head that attention backends of diffusers take, by how their names begin. SageAttention
# (github.com/thu-ml/SageAttention, issues 119 and 166) goes up to 128, and holds keys in 8 bits,
# which counts would not survive. cuDNN's goes further since 9.10 and PyTorch lets it before Hopper
# up to 128. XLA's is not told the scale. FlashAttention 2 and 3 end at 256, xFormers' too.
WIDEST = {"sage": 0, "_sage": 0, "_native_xla": 0, "_native_cudnn": 128, "flash_4": 128}


def _able(kwargs: dict[str, Any], width: int) -> dict[str, Any]:
    """The arguments with PyTorch's own attention for a backend that cannot hold heads so wide.

    `backend` is an argument of diffusers' processors; whoever has none calls PyTorch's anyway.
    """
    if "backend" not in kwargs:
        return kwargs
    name = kwargs["backend"]
    if name is None:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        name = _AttentionBackendRegistry.get_active_backend()[0]
    name = str(getattr(name, "value", name))
    widest = [most for begin, most in WIDEST.items() if name.startswith(begin)]
    if not widest or width <= widest[0]:
        return kwargs
    if not compiling() and name not in _SAID:
        _SAID.add(name)
        warnings.warn(
            f"attention backend {name!r} does not take keys that count for many (heads of {width} "
            "channels): PyTorch's own is used where they do; leave out weights to use yours",
            stacklevel=2,
        )
    return kwargs | {"backend": "native"}


_SAID: set[str] = set()  # backends of which it was said
