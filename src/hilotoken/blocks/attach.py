"""A method placed inside the blocks of a transformer, by hooks, for the length of one call.

Tokens are merged before a module and unmerged after it, or keys and values are made of fewer. Text
tokens and those of references pass through as they are. Rotary places follow their tokens: where a
method acts, the processor is given none, and queries and keys are turned here, each by its own.

B batch, S image tokens of a call, of which the method may touch the first N; M left of those; L of
the joint sequence, H heads, D channels a head, C channels.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..attention import Weighted, rerouted
from ..hooks import Made, StepClock, bind_call, compiled_whole, hooked
from ..layout import Block, Call, Layout, layout_of
from ..plan import TokenPlan
from ..timing import Stopwatch
from .method import BlockMethod, Session, Short, Site, Tokens
from .tokens import Pending, at_homes, exchange, joint_counts, restore, turn


@contextmanager
def placed(
    transformer: nn.Module,
    method: BlockMethod,
    scheduler: Any,
    plan: Callable[[], TokenPlan | None] = lambda: None,
    watch: Stopwatch | None = None,
) -> Iterator["Placement"]:
    """The method at work inside the blocks for this context; nothing is left behind.

    Args:
        transformer: a diffusers model
        scheduler: the pipeline's, which knows how many steps there will be
        plan: what a sequence method runs, asked at every call; None for all tokens
        watch: adds up the seconds that matching takes, as its part "match"

    Raises:
        TypeError: a transformer whose blocks are not known, or an attention that is not.
        ValueError: compiled blocks, or blocks that the model does not have.
    """
    made = Placement(transformer, method, scheduler, plan, watch)
    with ExitStack() as stack:
        for hook in made.hooks():
            stack.enter_context(hook)
        attentions = [module for b in made.blocks for module in b.attentions]
        stack.enter_context(rerouted(transformer, made.attend, attentions))
        yield made


@dataclass(frozen=True, eq=False)
class _Turn:
    """What is known of the tokens of one plan over the steps of a run."""

    shape: tuple[Any, ...]
    session: Session
    clock: StepClock
    tokens: Tokens


@dataclass(eq=False)
class Placement:
    """See `placed`. `kept` tells what share of the tokens ran in queries, keys and feed-forward."""

    transformer: nn.Module
    method: BlockMethod
    scheduler: Any
    plan: Callable[[], TokenPlan | None]
    watch: Stopwatch | None
    tally: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout: Layout = layout_of(self.transformer)
        self.blocks: list[Block] = self.layout.blocks(self.transformer)
        self.chosen = self.method.chosen_blocks(len(self.blocks))
        for module in (self.transformer, *(b.module for b in self.blocks)):
            if compiled_whole(module):
                raise ValueError(
                    f"{type(self.method).__name__} acts inside blocks as they run, which "
                    "torch.compile cannot trace: use it without compiling"
                )
        self.session: Session = self.method.session()
        self.clock = StepClock(self.scheduler)
        self.tokens: Tokens | None = None
        # By their plan: those of a batch take turns. Without one, all tokens run.
        self._turns: WeakKeyDictionary[Any, _Turn] = WeakKeyDictionary()
        self._grids = Made()
        self.length = 0
        self.input: Tensor | None = None
        self.pending: Pending | None = None
        self.feeding: tuple[slice, Short] | None = None

    @property
    def kept(self) -> dict[str, float]:
        """Mean share of the image tokens in queries, keys and feed-forward, over all blocks."""
        return {name: run / full for name, (run, full) in self.tally.items()}

    def hooks(self) -> Iterable[AbstractContextManager[None]]:
        """Around the transformer and, in every block, around the modules that see image tokens."""
        yield hooked(self.transformer, self.enter)
        for number, block in enumerate(self.blocks):
            yield from self._watch_block(number, block)

    def _watch_block(self, number: int, block: Block) -> Iterable[AbstractContextManager[None]]:
        def keep_input(module: nn.Module, args: Any, kwargs: Call) -> None:
            self.input = _hidden(args, kwargs)

        yield hooked(block.module, keep_input)
        for i, attn in enumerate(block.attentions):
            part = f"attention{i + 1 if i else ''}"

            def before(module: Any, args: Any, kwargs: Call, part: str = part) -> Any:
                return self._before_attention(number, part, block.joined, module, args, kwargs)

            yield hooked(attn, before, self._after_attention)
            projections: Any = attn.to_k, attn.to_v
            for projection in projections:
                yield hooked(projection, self._shorten_keys)
        first, last = block.feed

        def feed(module: nn.Module, args: Any, kwargs: Call) -> Any:
            return self._before_feed(number, block.joined, args, kwargs)

        yield hooked(first, feed)
        yield hooked(last, after=self._after_feed)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
        """At every call of the transformer: which tokens these are, and which step this is."""
        call = bind_call(module, args, kwargs)
        plan, hidden = self.plan(), call["hidden_states"]
        self.length = self.layout.image_tokens(module, call)
        if plan and hidden.ndim == 4:  # of a picture the tokens that run are gathered further in
            self.length = plan.tokens_run
        grid = plan.grid if plan else self._grid(module, call)
        shape = (grid, len(hidden), hidden.device)
        known = self._turns.get(plan or self)
        if known is None or known.shape != shape:
            known = self._turns[plan or self] = self._begin(shape, plan)
        self.session, self.clock, self.tokens = known.session, known.clock, known.tokens
        self.clock.tick(lambda: call["timestep"].flatten()[0].item() / self.layout.levels)

    def _begin(self, shape: tuple[Any, ...], plan: TokenPlan | None) -> "_Turn":
        grid, _, device = shape
        tokens = Tokens.of_plan(plan, device) if plan else Tokens(grid, None, device)
        if tokens.count > self.length:
            raise ValueError(
                f"the transformer was given {self.length} image tokens, but the grid of {grid} "
                f"has {tokens.count}: this use is not supported"
            )
        self.method.check(tokens, self.layout.text_first is not None)
        return _Turn(shape, self.method.session(), StepClock(self.scheduler), tokens)

    def _grid(self, module: nn.Module, call: Call) -> tuple[int, int]:
        """Read off the places of the tokens once, for which the host waits."""
        places = call.get("img_ids")
        if places is None:
            return self.layout.grid(module, call)
        return self._grids.of((places,), lambda: self.layout.grid(module, call))

    def _site(self, number: int, part: str) -> Site:
        assert self.tokens is not None
        assert self.input is not None
        begin = getattr(self.scheduler, "begin_index", None) or 0
        clock, noise = self.clock, self.clock.time
        steps = max(len(self.scheduler.timesteps) - begin, clock.step + 1)
        whole = self.input[:, : self.tokens.count]
        return Site(
            part, number, len(self.blocks), clock.step, steps, clock.branch, noise,
            self.tokens, whole,
        )  # fmt: skip

    def _ask(self, answer: Callable[[Site, Tensor], Short | None], at: Site, x: Tensor) -> Any:
        with self.watch.time("match") if self.watch else nullcontext():
            return answer(at, x)

    def _count(self, name: str, short: Short | None) -> None:
        assert self.tokens is not None
        sums = self.tally.setdefault(name, [0, 0])
        sums[0] += self.length - (self.tokens.count - short.home_BM.shape[1] if short else 0)
        sums[1] += self.length

    # Attention.

    def _before_attention(
        self, number: int, part: str, joined: bool, module: Any, args: Any, kwargs: Call
    ) -> Any:
        self.pending = None
        hidden = _hidden(args, kwargs)
        if number not in self.chosen:
            self._count("queries", None)
            self._count("keys", None)
            return None
        at = self._site(number, part)
        N, start = at.tokens.count, hidden.shape[1] - self.length if joined else 0
        body = slice(start, start + N)
        context = kwargs.get("encoder_hidden_states")
        text = start if joined or context is None else context.shape[1]
        first = text if self.layout.text_first else 0
        joint = slice(first, first + N)
        normed_BNC = hidden[:, body]
        short = self._ask(self.session.attention, at, normed_BNC)
        keys = None if short else self._ask(self.session.keys, at, normed_BNC)
        self._count("queries", short)
        self._count("keys", short or keys)
        self.pending = Pending(at, body, joint, text, short, keys)
        if keys and getattr(module, "fused_projections", False):
            raise ValueError(
                f"{type(self.method).__name__} shortens keys and values before their projections, "
                "which are fused: call unfuse_qkv_projections() first"
            )
        return self._with_places(self.pending, hidden, args, kwargs)

    def _with_places(self, pending: Pending, hidden: Tensor, args: Any, kwargs: Call) -> Any:
        """The module's arguments with merged tokens, and places kept for `attend`."""
        short, keys = pending.short, pending.keys
        if not (short or keys):
            return None
        if self.layout.rows and kwargs.get("image_rotary_emb") is not None:
            rows = self.layout.rows(kwargs["image_rotary_emb"])
            pending.query_rows = pending.key_rows = rows
            if short:
                both = at_homes(rows, pending.joint, short.home_BM)
                pending.query_rows = pending.key_rows = both
            elif keys:
                pending.key_rows = at_homes(rows, pending.joint, keys.home_BM)
            kwargs = kwargs | {"image_rotary_emb": None}
        if short:
            hidden = exchange(hidden, pending.body, short.merge(hidden[:, pending.body]))
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    def _shorten_keys(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: Call) -> Any:
        pending = self.pending
        if pending is None or pending.keys is None:
            return None
        hidden = args[0]
        short = exchange(hidden, pending.body, pending.keys.merge(hidden[:, pending.body]))
        return (short, *args[1:]), kwargs

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Stands in for attention inside the processors: places, weights, masks of fewer keys."""
        pending = self.pending
        if pending is None:
            return original(query, key, value, **kw)
        if pending.query_rows is not None and pending.key_rows is not None:
            query = turn(self.layout, query, pending.query_rows)
            key = turn(self.layout, key, pending.key_rows)
        short = pending.short or pending.keys
        left = short.home_BM.shape[1] if short else pending.at.tokens.count
        image = slice(pending.joint.start, pending.joint.start + left)
        self.session.attended(pending.at, query, key, image, short)
        routed = self.session.route(pending.at, query, key, value, image, original, **kw)
        if routed is not None:
            return routed
        mask = kw.get("attn_mask")
        if mask is not None and mask.shape[-1] > key.shape[1]:  # text comes first, images are seen
            kw["attn_mask"] = mask[..., : key.shape[1]]
        emphasis = self.session.text_count(pending.at)
        counts = short.count_BM if short and self.method.weights else None
        if counts is None and emphasis == 1:
            return original(query, key, value, **kw)
        text = pending.text
        words = slice(0, text) if self.layout.text_first else slice(key.shape[1] - text, None)
        count_BL = joint_counts(key, image, counts, words, emphasis)
        return Weighted(count_BL)(module, query, key, value, original, **kw)

    def _after_attention(self, module: nn.Module, args: Any, kwargs: Call, output: Any) -> Any:
        pending, self.pending = self.pending, None
        if pending is None or pending.short is None:
            return None
        image = output[0] if isinstance(output, tuple) else output
        image = restore(image, pending.body, pending.short)
        return (image, *output[1:]) if isinstance(output, tuple) else image

    # Feed-forward.

    def _before_feed(
        self, number: int, joined: bool, args: tuple[Tensor, ...], kwargs: Call
    ) -> Any:
        self.feeding = None
        short, hidden = None, args[0]
        if number in self.chosen:
            at = self._site(number, "feed_forward")
            start = hidden.shape[1] - self.length if joined else 0
            if hidden.shape[1] != self.length + start:
                raise ValueError("a feed-forward in chunks cannot be shortened: disable chunking")
            body = slice(start, start + at.tokens.count)
            short = self._ask(self.session.feed_forward, at, hidden[:, body])
            if short:
                self.feeding = body, short
        self._count("feed_forward", short)
        if not self.feeding or not short:
            return None
        body = self.feeding[0]
        return (exchange(hidden, body, short.merge(hidden[:, body])), *args[1:]), kwargs

    def _after_feed(self, module: nn.Module, args: Any, kwargs: Call, output: Tensor) -> Any:
        feeding, self.feeding = self.feeding, None
        return restore(output, *feeding) if feeding else None


def _hidden(args: tuple[Any, ...], kwargs: Call) -> Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
