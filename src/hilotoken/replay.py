"""A forward pass recorded once and repeated, as CUDA graphs do, without the Python of the model.

PyTorch issues a pass operation by operation, and where few tokens run, issuing takes longer than
the work. A CUDA graph is issued as one: the same kernels, of the same shapes, at the same places in
memory. So what a call brings is copied to where the recording reads it, and what it answers is
copied away. On the CPU operations are recorded, by a trace in which tensors have no numbers: what
depends on numbers gets through neither. https://docs.pytorch.org/docs/stable/notes/cuda.html
"""

import threading
from collections.abc import Callable, Collection
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from . import hooks
from .memory import adapted, adapter_of

Pass = Callable[[], list[Tensor]]  # a recorded pass
LEAVE = "leave out capture"
# Models of diffusers that copy from the host at every pass, or do where they are given an argument.
COPYING = {
    "ChromaTransformer2DModel": "",
    "Kandinsky5Transformer3DModel": "",
    "QwenImageTransformer2DModel": "encoder_hidden_states_mask",
}
# PyTorch records a graph, and traces, once at a time in a process.
_ONE_AT_A_TIME = threading.Lock()
# What an argument may be besides a tensor.
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class CpuRecorder:
    """Records operations."""

    def record(self, run: Callable[..., list[Tensor]], given: list[Tensor]) -> Pass:
        from torch._subclasses import FakeTensorMode  # importing these takes a while
        from torch.fx.experimental.proxy_tensor import make_fx

        with FakeTensorMode(allow_non_fake_inputs=True) as without_numbers:
            trace = make_fx(run)(*map(without_numbers.from_tensor, given))
        return lambda: [x.clone() for x in trace(*given)]


class CudaRecorder:
    """Records kernels, all on one stream and in one pool of memory.

    Recordings may share it: one is over, and its answer copied, before another begins. No graph is
    made of a pass with gradients, so that a pass on any stream warms up what they need.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[..., list[Tensor]], given: list[Tensor]) -> Pass:
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )
        # So that cuBLAS works in the recording's own memory, which ends with it, as Inductor does.
        clear = torch._C._cuda_clearCublasWorkspaces
        clear()
        try:
            # The outer context puts the stream back where a capture that failed does not.
            with torch.cuda.stream(self.stream), capture:
                answered = run(*given)
        finally:
            clear()

        def replay() -> list[Tensor]:
            graph.replay()
            return [x.clone() for x in answered]

        return replay


def recorder_for(model: nn.Module, device: torch.device) -> CpuRecorder | CudaRecorder:
    """What records forward passes of a model.

    Raises:
        ValueError: a device that repeats no recording, or a model in which more happens at a pass
            than a recording holds.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"capture=True records on CUDA and on the CPU, not on {device}: {LEAVE}")
    if hooks.any_compiled(model):
        raise ValueError(
            f"capture=True records a model that is not compiled: leave {_name(model)} uncompiled, "
            f"or {LEAVE} and compile it by mode='reduce-overhead'"
        )
    _check_copies(model, ())
    for name, part in hooks.unwrap(model).named_modules():
        if why := _more_than_a_pass(part, top=not name):
            raise ValueError(
                f"capture=True repeats the kernels of a pass alone, and {name or _name(model)} "
                f"has {why}, which would be passed over: take it off, or {LEAVE}"
            )
    return CudaRecorder(device) if device.type == "cuda" else CpuRecorder()


def _check_copies(model: Any, given: Collection[str]) -> None:
    names = [base.__name__ for base in type(hooks.unwrap(model)).__mro__]
    argument = next((COPYING[name] for name in names if name in COPYING), None)
    if argument == "" or argument in given:
        when = f"given {argument}, as prompts of several lengths are, " if argument else ""
        raise ValueError(
            f"{_name(model)} {when}copies from the host at every pass, which no recording does: "
            f"{LEAVE}"
        )


def _name(model: Any) -> str:
    return type(hooks.unwrap(model)).__name__


def _more_than_a_pass(part: Any, top: bool) -> str:
    """What else is done when the module is called; hooks of the model itself are around a pass."""
    if hasattr(part, "_hf_hook"):
        return "a hook of accelerate's, such as offloading"
    if getattr(getattr(part, "_diffusers_hook", None), "hooks", None):
        return f"hooks of diffusers' ({', '.join(part._diffusers_hook.hooks)})"
    found = [] if top else [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
    others = (hook for hook in found if getattr(hook, "__module__", "") != hooks.__name__)
    return next((f"a forward hook ({_said(hook)})" for hook in others), "")


def _said(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


class Replay:
    """Stands in for a forward pass that is called over and over.

    The first call runs as ever, and makes what is made once; the second is recorded, and it and
    all later ones are repeated by the recording. Calls of other shapes begin anew, and so does the
    call after weights were exchanged or adapters scaled otherwise.
    """

    def __init__(self, model: nn.Module, recorder: CpuRecorder | CudaRecorder) -> None:
        self.model, self.recorder = model, recorder
        self.owners: list[dict[str, Any]] = []  # of its weights, by module
        self.weights: list[Any] = []
        self.tuners: list[Any] = []  # and the adapters beside them
        self.adapters: list[Any] = []
        self.known: tuple[Any, ...] = ()  # of the calls that are alike
        self.given: list[Tensor] = []  # the tensors of a call, where the recording reads them
        self.rest: tuple[list[Any], Any] = [], None  # of the answer, what is no tensor
        self.recorded: Pass | None = None

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The answer of `forward(*args, **kwargs)`.

        Raises:
            ValueError: gradients or autocast's memory, which are not repeated; numbers that are
                others at every call; what depends on the host in the pass itself.
        """
        leaves, spec = tree_flatten((args, kwargs))
        known = spec, [_seen(x) for x in leaves]
        if known != self.known or not self._stands():
            self._check_alike(known, (args, kwargs))
            _check_copies(self.model, [k for k, x in kwargs.items() if x is not None])
            self.known, self.recorded = known, None
            self._look()
            return forward(*args, **kwargs)
        if self.recorded is None:
            self._record(forward, leaves, spec)
        assert self.recorded is not None
        for there, x in zip(self.given, _tensors(leaves), strict=True):
            there.copy_(x)
        answered, (rest, answer) = iter(self.recorded()), self.rest
        return tree_unflatten([next(answered) if x is Tensor else x for x in rest], answer)

    def _look(self) -> None:
        """Note by what the model computes."""
        parts = list(self.model.modules())
        self.owners = [part._parameters for part in parts if part._parameters]
        self.weights = [x for owner in self.owners for x in owner.values()]
        self.tuners = adapted(self.model)
        self.adapters = self._adapters()

    def _stands(self) -> bool:
        """Whether the model computes by what it was seen to."""
        weights = (x for owner in self.owners for x in owner.values())
        return self._adapters() == self.adapters and all(map(is_, weights, self.weights))

    def _adapters(self) -> list[Any]:
        return [list(getattr(self.model, "peft_config", ())), *map(adapter_of, self.tuners)]

    def _check_alike(self, known: tuple[Any, ...], given: Any) -> None:
        if not self.known or self.recorded or known[0] != self.known[0]:
            return
        paths = [path for path, _ in tree_flatten_with_path(given)[0]]
        pairs = zip(paths, known[1], self.known[1], strict=True)
        changed = [(path, now, before) for path, now, before in pairs if now != before]
        if changed and not any(isinstance(now, tuple) for _, now, _ in changed):
            path, now, before = changed[0]
            raise ValueError(
                f"capture=True repeats a pass with the numbers that it was recorded with, and "
                f"{keystr(path[1:])} was {before!r} at one step and {now!r} at the next: {LEAVE}"
            )

    def _record(self, forward: Callable[..., Any], leaves: list[Any], spec: Any) -> None:
        if torch.is_grad_enabled():
            raise ValueError(f"no gradient goes through a captured pass: {LEAVE}, or use no_grad()")
        kinds = {x.device.type for x in _tensors(leaves)}
        if torch.is_autocast_cache_enabled() and any(map(torch.is_autocast_enabled, kinds)):
            raise ValueError(
                "autocast keeps what it casts, and a recording would own it: give it "
                f"cache_enabled=False, or {LEAVE}"
            )

        def run(*tensors: Tensor) -> list[Tensor]:
            own = iter(tensors)
            filled = [next(own) if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = tree_unflatten(filled, spec)
            found, answer = tree_flatten(forward(*args, **kwargs))
            self.rest = [Tensor if isinstance(x, Tensor) else x for x in found], answer
            return _tensors(found)

        self.given = [x.clone() for x in _tensors(leaves)]
        try:
            with _ONE_AT_A_TIME:
                self.recorded = self.recorder.record(run, self.given)
        except RuntimeError as error:
            first = error.__context__ or error  # closing what broke off fails too, and hides why
            if isinstance(first, torch.OutOfMemoryError) or not isinstance(first, Exception):
                raise first from None
            raise ValueError(
                f"{_name(self.model)} cannot be captured: its pass depends on the host, which "
                f"reads or copies something ({str(first).strip().splitlines()[0]}): {LEAVE}"
            ) from error


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [x for x in leaves if isinstance(x, Tensor)]


def _seen(x: Any) -> Any:
    """What of an argument must stay for a recording to stand for the call."""
    if isinstance(x, Tensor):
        return tuple(x.shape), x.dtype, x.device
    if not isinstance(x, PLAIN):
        raise ValueError(
            f"capture=True cannot tell whether a {type(x).__name__} that the model is given "
            f"changes from step to step: {LEAVE}"
        )
    return x
