"""Methods inside the blocks of real transformers: nothing lost, nothing left, text untouched."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import GRID, MODELS, TEXT, flux, pixart, qwen, sd3
from torch import Tensor, nn

from hilotoken.attention import rerouted
from hilotoken.blocks.attach import placed
from hilotoken.blocks.matching import take
from hilotoken.blocks.method import BlockMethod, Session, Tokens
from hilotoken.layout import layout_of
from hilotoken.methods import SDTM, BiGainTD, BiGainTM, ToDo, TokenPooling, ToMe
from hilotoken.methods.stages import Fused

N = GRID**2
STEPS = SimpleNamespace(timesteps=range(4))


@dataclass(frozen=True, eq=False)
class Plan:
    """What a placement reads of a plan."""

    grid: tuple[int, int]
    keep_K: torch.Tensor
    tokens_full: int


IDLE = [
    ToMe(ratio=0, feed_forward=True), ToMe(ratio=0, random=True), ToDo(factor=1),
    BiGainTM(ratio=0, feed_forward=True), BiGainTD(factor=1),
    TokenPooling(ratio=0, feed_forward=True, significance="attention"),
    SDTM(ratio=0, deviation=0, protect=0), SDTM(protect=1), SDTM(protect=1, cached=0.9),
]  # fmt: skip
ACTIVE = [
    ToMe(feed_forward=True), ToMe(ratio=0.6, random=True, seed=3), ToMe(weights=True),
    ToMe(ratio=0.8, stride=(4, 2)), ToDo(mode="nearest"), ToDo(mode="average", weights=True),
    BiGainTM(feed_forward=True), BiGainTM(attention=False, feed_forward=True), BiGainTD(),
    BiGainTD(alpha=0.9, alpha_end=0.1), TokenPooling(feed_forward=True),
    TokenPooling(kind="medoids", significance="attention"), TokenPooling(significance="key"),
    SDTM(ratio=0.7, deviation=0.05, structure=1, protect=0),
    SDTM(ratio=0.7, deviation=0.05, structure=0, protect=0),
]  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    model, given, _ = request.param()
    for module in model.modules():  # wide enough that every token counts
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval(), given


def run(model: nn.Module, given: dict) -> Tensor:
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def within(model: nn.Module, given: dict, method: BlockMethod) -> Tensor:
    with placed(model, method, STEPS):
        return run(model, given)


def at_noise(given: dict, share: float) -> dict:
    most = 1 if given["timestep"].max() <= 1 else 1000
    return given | {"timestep": torch.full_like(given["timestep"], share * most)}


def worst(left: Tensor, right: Tensor) -> float:
    return ((left - right).abs().max() / right.abs().max()).item()


def state(model: nn.Module) -> dict:
    found: dict[str, Any] = {"class": dict(vars(type(model)))}
    for name, module in model.named_modules():
        hooks = {k: list(v) for k, v in vars(module).items() if "hooks" in k and v}
        found[name] = set(vars(module)), hooks, vars(module).get("processor"), module.forward
    return found


class Stop(Exception):
    pass


def test_removing_nothing_changes_nothing_to_the_bit(case):
    model, given = case
    plain = run(model, given)
    for method in IDLE:
        assert torch.equal(within(model, given, method), plain), method


def test_the_model_afterwards_is_the_model_before(case):
    model, given = case
    plain, before = run(model, given), state(model)
    for method in ACTIVE:
        assert worst(within(model, given, method), plain) > 1e-3, method
        assert state(model) == before
    last = layout_of(model).blocks(model)[-1].feed[1]

    def stop(*_):
        raise Stop

    handle = last.register_forward_hook(stop)
    for method in ACTIVE[:6]:
        with pytest.raises(Stop):
            within(model, given, method)
    handle.remove()
    assert state(model) == before
    assert torch.equal(run(model, given), plain)


# What a method does, against attention with a mask on a whole sequence


class Drop(Session, BlockMethod):
    """Some tokens, another choice in each sample, run for all: no means that a mask cannot form."""

    def __init__(self, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        order = [torch.randperm(N, generator=generator)[: N // 3] for _ in range(batch)]
        self.home_BM = torch.stack(order).sort(1).values
        self.slot_BN = torch.randint(N // 3, (batch, N), generator=generator)
        self.slot_BN.scatter_(1, self.home_BM, torch.arange(N // 3).expand(batch, -1))
        self.count_BM = torch.rand(batch, N // 3, generator=generator) + 0.5
        object.__setattr__(self, "weights", False)

    def session(self):
        return self

    def attention(self, at, normed_BNC):
        return self

    def merge(self, x_BNC):
        return take(x_BNC, self.home_BM)

    def unmerge(self, y_BMC):
        return take(y_BMC, self.slot_BN)


def as_mask(model: nn.Module, method: Drop, weights: bool = False):
    """The same by a mask on the keys of a whole sequence, and by copying queries' outputs."""
    first = layout_of(model).text_first

    def attend(module, query, key, value, original, **kwargs):
        start = key.shape[1] - N if first else 0
        bias = torch.zeros(len(key), key.shape[1])
        bias[:, start : start + N] = -torch.inf
        logs = method.count_BM.log() if weights else torch.zeros_like(method.count_BM)
        bias.scatter_(1, start + method.home_BM, logs)
        own = kwargs.pop("attn_mask", None)
        if own is not None:
            bias = bias.masked_fill(~own[:, 0, 0], -torch.inf)
        result = original(query, key, value, attn_mask=bias[:, None, None], **kwargs)
        index = torch.arange(key.shape[1]).repeat(len(key), 1)
        index[:, start : start + N] = start + method.home_BM.gather(1, method.slot_BN)
        return result.gather(1, index[..., None, None].expand_as(result))

    blocks = layout_of(model).blocks(model)
    return rerouted(model, attend, [module for b in blocks for module in b.attentions])


@pytest.mark.parametrize("weights", [False, True])
def test_places_follow_their_tokens_and_keys_are_those_that_run(case, weights):
    model, given = case
    method = Drop(2)
    with as_mask(model, method, weights):
        expected = run(model, given)
    object.__setattr__(method, "weights", weights)
    assert worst(within(model, given, method), expected) <= 1e-5
    assert worst(run(model, given), expected) > 1e-2


def test_keys_of_one_token_a_cell_equal_a_mask_on_the_others(case):
    model, given = case
    method = Drop(2)
    method.home_BM = torch.arange(N).view(GRID, GRID)[1::2, 1::2].reshape(1, -1).expand(2, -1)
    method.count_BM = torch.full(method.home_BM.shape, 4.0)
    first = layout_of(model).text_first

    def attend(module, query, key, value, original, **kwargs):
        start = key.shape[1] - N if first else 0
        keep = torch.ones(2, key.shape[1], dtype=torch.bool)
        keep[:, start : start + N] = False
        keep.scatter_(1, start + method.home_BM, True)
        own = kwargs.pop("attn_mask", None)
        if own is not None:
            keep = keep & own[:, 0, 0]
        return original(query, key, value, attn_mask=keep[:, None, None], **kwargs)

    blocks = layout_of(model).blocks(model)
    with rerouted(model, attend, [m for b in blocks for m in b.attentions]):
        expected = run(model, given)
    assert worst(within(model, given, ToDo()), expected) <= 1e-5


@pytest.mark.parametrize("make", [flux, qwen, sd3])
@pytest.mark.parametrize("number", [0, -1])
def test_text_reaches_attention_untouched(make, number):
    torch.manual_seed(0)
    model, given, _ = make()
    block = layout_of(model).blocks(model)[number]
    number %= len(layout_of(model).blocks(model))
    seen: list[dict] = []

    def look(module, args, kwargs):
        seen.append(kwargs)

    def text_and_length(kwargs):
        if block.joined:
            return kwargs["hidden_states"][:, :TEXT], kwargs["hidden_states"].shape[1] - TEXT
        return kwargs["encoder_hidden_states"], kwargs["hidden_states"].shape[1]

    method = ToMe(blocks=number, feed_forward=True)
    with placed(model, method, STEPS):
        handle = block.attentions[0].register_forward_pre_hook(look, with_kwargs=True)
        run(model, given)
    run(model, given)
    handle.remove()
    (merged, short), (plain, whole) = map(text_and_length, seen)
    assert torch.equal(merged, plain)
    assert (short, whole) == (N // 2, N)


def without_places(model: nn.Module) -> None:
    """All tokens stand at one place."""
    if hasattr(model.pos_embed, "pos_embed"):
        model.pos_embed.pos_embed.zero_()
        return

    def still(module, args, output):
        if output[0].is_complex():
            return tuple(torch.ones_like(x) for x in output)
        return torch.ones_like(output[0]), torch.zeros_like(output[1])

    model.pos_embed.register_forward_hook(still)


def test_tokens_all_alike_lose_nothing_when_merged_keys_count_as_many(case):
    model, given = case
    without_places(model)
    hidden = given["hidden_states"]
    flat = hidden[:, :1].expand_as(hidden) if hidden.ndim == 3 else torch.ones_like(hidden)
    given = given | {"hidden_states": flat}
    plain = run(model, given)
    for method in (
        ToMe(weights=True, feed_forward=True), BiGainTM(weights=True, feed_forward=True),
        ToDo(weights=True, mode="area"), BiGainTD(weights=True),
        TokenPooling(weights=True, feed_forward=True, kind="medoids"),
        SDTM(weights=True, ratio=0.7, deviation=0.05, structure=1, protect=0),
    ):  # fmt: skip
        assert worst(within(model, given, method), plain) <= 1e-5, method
    if layout_of(model).text_first is not None:  # without that, text gains
        assert worst(within(model, given, ToMe()), plain) > 1e-4


def test_a_sample_is_the_same_alone_and_in_a_batch(case):
    model, given = case
    model.double()  # in float32 rounding may move a token to another cluster
    given = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in given.items()
    }
    alone = {k: v[1:] if isinstance(v, Tensor) and len(v) == 2 else v for k, v in given.items()}
    if "img_shapes" in given:
        alone["img_shapes"] = given["img_shapes"][1:]
    for method in ACTIVE:
        whole, one = within(model, given, method), within(model, alone, method)
        assert worst(one[0], whole[1]) <= 1e-5, method


def test_as_many_run_as_the_ratio_says(case):
    model, given = case
    for ratio in (0.1, 0.5, 0.75):
        for kind in (ToMe, BiGainTM, TokenPooling):
            with placed(model, kind(ratio=ratio, feed_forward=True), STEPS) as placement:
                run(model, given)
            share = 1 - int(ratio * N) / N
            assert placement.kept == dict.fromkeys(("queries", "keys", "feed_forward"), share)
    for factor in (2, 3, 4):
        with placed(model, ToDo(factor=factor), STEPS) as placement:
            run(model, given)
        share = (GRID // factor) ** 2 / N
        assert placement.kept == {"queries": 1, "keys": share, "feed_forward": 1}


def test_another_threads_call_of_the_same_model_passes():
    model, given, _ = flux()
    plain = run(model, given)
    with placed(model, ToMe(), STEPS), ThreadPoolExecutor() as threads:
        assert torch.equal(threads.submit(run, model, given).result(), plain)
        assert worst(run(model, given), plain) > 1e-4


def test_only_the_blocks_named_act():
    model, given, _ = flux()
    with placed(model, ToMe(blocks="0,2-3"), STEPS) as placement:
        run(model, given)
    assert placement.kept["queries"] == pytest.approx((3 * 0.5 + 1) / 4)
    with pytest.raises(ValueError, match=r"blocks must lie in \[0, 3\]"):
        within(model, given, ToMe(blocks="2-4"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_a_chosen_backend_go_through(case, dtype):
    model, given = case
    model.to(dtype)
    model.set_attention_backend("native")
    cast = {
        k: v.to(dtype)
        if isinstance(v, Tensor)
        and v.is_floating_point()
        and k not in ("timestep", "img_ids", "txt_ids")
        else v
        for k, v in given.items()
    }
    plain = run(model, cast)
    for method in (IDLE[0], IDLE[3]):
        assert torch.equal(within(model, cast, method), plain), method
    for method in ACTIVE:
        result = within(model, cast, method)
        assert result.dtype == dtype
        assert result.isfinite().all(), method


# State over the steps of a run


def homes(placement, branch: int = 0, block: int = 0) -> Tensor:
    return placement.session._kept[block, branch][1].home_BM


def test_both_branches_of_guidance_draw_alike_and_each_step_and_block_anew():
    model, given, _ = flux()
    with placed(model, ToMe(ratio=0.75, random=True), STEPS) as placement:
        run(model, at_noise(given, 1.0))
        run(model, at_noise(given, 1.0))
        assert torch.equal(homes(placement), homes(placement, branch=1))
        assert not torch.equal(homes(placement), homes(placement, block=1))
        first = homes(placement)
        run(model, at_noise(given, 0.5))
        assert not torch.equal(homes(placement), first)
    with placed(model, ToMe(ratio=0.75, random=True), STEPS) as placement:
        run(model, at_noise(given, 1.0))
        assert torch.equal(homes(placement), first)
    with placed(model, ToMe(ratio=0.75, random=True, seed=1), STEPS) as placement:
        run(model, at_noise(given, 1.0))
        assert not torch.equal(homes(placement), first)


@pytest.mark.parametrize("kind", [ToMe, BiGainTM, TokenPooling])
def test_matches_are_kept_for_as_many_steps_as_asked(kind):
    model, given, _ = flux()
    with placed(model, kind(reuse=2), STEPS) as placement:
        found = []
        for step in range(4):
            run(model, at_noise(given | {"hidden_states": torch.randn(2, N, 8)}, 1 - step / 4))
            found.append(placement.session._kept[0, 0][1])
    assert found[0] is found[1]
    assert found[2] is found[3]
    assert found[1] is not found[2]


HALF = {"ratio": 0.5, "deviation": 0.05}  # of 128 tokens: 16 of 32 windows collapse


def wide(count: int) -> tuple[nn.Module, list[dict]]:
    """A model, and calls with as many different pictures of 8 x 16 tokens."""
    torch.manual_seed(0)
    model, given, _ = pixart()
    pictures = torch.randn(count, 2, 4, 2 * GRID, 4 * GRID)
    return model.eval(), [given | {"hidden_states": picture} for picture in pictures]


def test_staleness_is_each_branchs_own_and_shared_by_its_blocks():
    model, (given, other) = wide(2)
    method = SDTM(**HALF, structure=1, protect=0)
    with placed(model, method, STEPS) as placement:
        run(model, at_noise(given, 1.0))
        alone = placement.session.staleness[0].clone()
        run(model, at_noise(other, 1.0))
        assert torch.equal(placement.session.staleness[0], alone)
        assert not torch.equal(placement.session.staleness[1], alone)
        assert alone.max() == 2  # two blocks
        run(model, at_noise(given, 0.5))
        assert placement.session.staleness[0].max() > 2


def test_a_change_of_size_begins_anew():
    model, given, _ = pixart()
    method = SDTM(ratio=0.7, deviation=0.05, structure=1, protect=0)
    wider = given | {"hidden_states": torch.randn(2, 4, 2 * GRID, 4 * GRID)}
    fresh = within(model, given, method)
    with placed(model, method, STEPS) as placement:
        run(model, at_noise(given, 0.9))
        run(model, at_noise(wider, 0.8))
        assert placement.clock.step == 0
        assert torch.equal(run(model, given), fresh)


def test_protected_steps_are_dense_and_what_they_made_is_blended_in():
    model, pictures = wide(4)
    steps = [at_noise(given, 1 - s / 4) for s, given in enumerate(pictures)]
    plain = [run(model, one) for one in steps]

    def over(**options):
        with placed(model, SDTM(**HALF, structure=1, **options), STEPS):
            return [run(model, one) for one in steps]

    bare, fused = over(protect=2), over(protect=2, cached=0.9)
    for s in range(4):
        assert torch.equal(bare[s], plain[s]) is (s % 2 == 0)
        assert torch.equal(fused[s], plain[s]) is (s % 2 == 0)
    assert worst(fused[1], bare[1]) > 1e-3


def test_a_merged_tokens_output_is_blended_with_the_one_kept():
    model, pictures = wide(2)
    with placed(model, SDTM(**HALF, structure=1, protect=2, cached=0.25), STEPS) as placement:
        run(model, at_noise(pictures[0], 1.0))
        kept = dict(placement.session.cache)
        assert len(kept) == 4  # of attention and feed-forward in two blocks
        run(model, at_noise(pictures[1], 0.5))
        match = placement.session.match[1]
        stale_BN = placement.session.staleness[0]
    merged_BN = (match.count_BM > 1).gather(1, match.slot_BN)
    assert torch.equal(merged_BN, stale_BN > 0)
    assert 0 < merged_BN.float().mean() < 1
    kept_BNC = kept[(1, 0), "feed_forward"]
    ones_BNC = Fused(match, kept_BNC, merged_BN, 0.25).unmerge(torch.ones(2, match.tokens, 32))
    expected = torch.where(merged_BN[..., None], 0.75 + 0.25 * kept_BNC, 1.0)
    assert torch.allclose(ones_BNC, expected)


def test_the_ratio_falls_over_the_steps_and_the_detail_stage_spares_attention():
    model, given, _ = pixart()
    method = SDTM(ratio=0.45, deviation=0.3, structure=0.5, protect=0)
    kept = []
    for s in range(4):
        with placed(model, method, STEPS) as placement:
            placement.shape = None
            run(model, at_noise(given, 1.0))
            placement.tally.clear()
            placement.clock.step, placement.clock._mark = s - 1, None
            run(model, at_noise(given, 1.0))
            kept.append((placement.kept["queries"], placement.kept["feed_forward"]))
    # Of 64 tokens the schedule removes 48, 42, 28 and 9: 16 windows, none, 16 tokens, none.
    assert kept == [(0.25, 0.25), (1, 1), (1, 0.75), (1, 1)]


@pytest.mark.parametrize("make", [flux, sd3, qwen])
def test_emphasis_makes_each_text_key_count_as_many(make):
    torch.manual_seed(0)
    model, given, _ = make()
    first = layout_of(model).text_first

    def attend(module, query, key, value, original, **kwargs):
        extra = key.shape[1] - N
        bias = torch.zeros(len(key), key.shape[1])
        bias[:, slice(0, extra) if first else slice(N, None)] = torch.tensor(3.0).log()
        own = kwargs.pop("attn_mask", None)
        if own is not None:
            bias = bias.masked_fill(~own[:, 0, 0], -torch.inf)
        return original(query, key, value, attn_mask=bias[:, None, None], **kwargs)

    with rerouted(model, attend):
        expected = run(model, given)
    method = SDTM(ratio=0, deviation=0, protect=0, structure=1, emphasis=3)
    assert worst(within(model, given, method), expected) <= 1e-5
    with pytest.raises(ValueError, match="emphasis needs text"):
        within(*pixart()[:2], method)


# Part of a grid, as HiLo leaves it


@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (6, 10)])
@pytest.mark.parametrize("side", [(2, 2), (3, 2), (4, 4)])
def test_cells_and_their_least_tokens_equal_brute_force(grid, side):
    generator = torch.Generator().manual_seed(0)
    count = grid[0] * grid[1]
    keep_N = torch.randperm(count, generator=generator)[: count // 3].sort().values
    score_N = torch.randint(4, (len(keep_N),), generator=generator).float()
    tokens, cells = Tokens(grid, keep_N), {}
    for i, index in enumerate(keep_N.tolist()):
        place = index // grid[1] // side[0], index % grid[1] // side[1]
        cells.setdefault(place, []).append(i)
    expected = sorted(
        min(members, key=lambda i: (score_N[i].item(), i)) for members in cells.values()
    )
    assert tokens.least(side, score_N).tolist() == expected
    cell_N, number = tokens.cells(side)
    assert number == len(cells)
    for members in cells.values():
        assert len(set(cell_N[members].tolist())) == 1


def part_of(model, given, method, keep_N):
    """A flux whose sequence is part of a grid, as a plan says."""
    plan = Plan(grid=(GRID, GRID), keep_K=keep_N, tokens_full=N)
    with placed(model, method, STEPS, lambda: plan) as placement:
        result = run(model, given)
    return result, placement


@pytest.mark.parametrize("extra", [0, 5])  # coarse tokens, which stay as they are
def test_part_of_a_grid_is_worked_on_and_the_rest_passes(extra):
    model, given, _ = flux()
    keep_N = torch.randperm(N)[:30].sort().values
    rows = torch.cat([keep_N, torch.arange(extra)])
    given = given | {
        "hidden_states": given["hidden_states"][:, rows],
        "img_ids": given["img_ids"][rows] * 1.0,
    }
    plain = run(model, given)
    for method in (
        ToMe(ratio=0),
        TokenPooling(ratio=0),
        ToDo(factor=1),
        ToMe(ratio=0, random=True),
    ):
        assert torch.equal(part_of(model, given, method, keep_N)[0], plain)
    for method in (ToMe(ratio=0.4), TokenPooling(ratio=0.4), ToMe(ratio=0.4, random=True)):
        result, placement = part_of(model, given, method, keep_N)
        assert worst(result, plain) > 1e-4
        assert placement.kept["queries"] == pytest.approx((30 - 12 + extra) / (30 + extra))
    cells = len({(i // GRID // 2, i % GRID // 2) for i in keep_N.tolist()})
    for method in (ToDo(), ToDo(mode="average"), BiGainTD()):
        result, placement = part_of(model, given, method, keep_N)
        assert placement.kept["keys"] == pytest.approx((cells + extra) / (30 + extra))


def test_a_whole_grid_taken_for_a_part_gives_the_same():
    model, given, _ = flux()
    for method in (
        ToMe(ratio=0.6),
        ToDo(mode="nearest"),
        ToDo(),
        ToDo(mode="average"),
        BiGainTD(alpha=0.3),
    ):
        whole = within(model, given, method)
        plan = Plan(grid=(GRID, GRID), keep_K=torch.arange(N), tokens_full=N + 1)
        with placed(model, method, STEPS, lambda plan=plan: plan):
            part = run(model, given)
        assert worst(part, whole) <= 1e-6, method


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToMe(ratio=0.8), r"ratio is a share and must lie in \[0, 0.75\], got 0.8"),
        (lambda: ToMe(ratio=-0.1), r"\[0, 0.75\]"),
        (lambda: ToMe(ratio=float("nan")), r"\[0, 0.75\]"),
        (lambda: ToMe(ratio="half"), r"\[0, 0.75\], got 'half'"),
        (lambda: BiGainTM(stride=(3, 3), ratio=0.9), r"\[0, 0.888889\]"),
        (lambda: ToMe(stride=(1, 1)), "leaves nothing to merge"),
        (lambda: ToMe(stride=2), "rows and columns"),
        (lambda: ToMe(stride=(0, 2)), "stride must be a whole number of 1 or more"),
        (lambda: ToMe(reuse=0), "reuse must be a whole number of 1 or more"),
        (lambda: ToMe(attention=False), "nothing would be merged"),
        (lambda: ToMe(seed=-1), "seed must be a whole number of 0 or more"),
        (lambda: ToMe(blocks="1-"), 'blocks must be "all" or like'),
        (lambda: ToMe(blocks="5-2"), "and rise"),
        (lambda: ToMe(weights=1), "weights must be True or False"),
        (lambda: ToDo(factor=0), "factor must be a whole number of 1 or more"),
        (lambda: ToDo(factor=2.0), "whole number"),
        (lambda: ToDo(mode="cubic"), "unknown mode 'cubic'; choose from"),
        (lambda: BiGainTM(norm="l3"), "unknown norm 'l3'; choose from"),
        (lambda: BiGainTD(alpha=float("inf")), "alpha must be a finite number"),
        (lambda: BiGainTD(alpha_end="x"), "alpha_end must be a finite number"),
        (lambda: TokenPooling(ratio=1.0), "one cluster at least"),
        (lambda: TokenPooling(kind="mode"), "unknown kind 'mode'; choose from"),
        (lambda: TokenPooling(significance="x"), "unknown significance 'x'; choose from"),
        (lambda: SDTM(ratio=0.3, deviation=0.4), "deviation"),
        (lambda: SDTM(ratio=0.6, deviation=0.2), r"\[0, 0.75\]"),
        (lambda: SDTM(cached=0.5, protect=0), "protected steps"),
        (lambda: SDTM(structure=1.5), r"structure is a share and must lie in \[0, 1\]"),
        (lambda: SDTM(emphasis=0), "emphasis must be above 0"),
        (lambda: SDTM(staleness=-1), "staleness must be a number of 0 or more"),
    ],
)
def test_bad_options_are_refused_at_construction_with_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_or_a_state_of_it_that_cannot_be_helped_is_refused():
    class Other(nn.Module):
        pass

    with pytest.raises(TypeError, match=r"do not know those of Other; supported: DiTTransformer2D"):
        within(Other(), {}, ToMe())
    model, given, _ = flux()
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="call unfuse_qkv_projections"):
        within(model, given, ToDo())
    assert worst(within(model, given, ToMe()), run(model, given)) > 1e-4
    model, given, _ = flux()
    model.transformer_blocks[0].compile(backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile cannot trace"):
        within(model, given, ToMe())
    with pytest.raises(ValueError, match=r"factor must lie in \[1, 8\]"):
        within(*flux()[:2], ToDo(factor=9))
    model, given, _ = pixart()
    odd = given | {"hidden_states": torch.randn(2, 4, 10, 16)}
    with pytest.raises(ValueError, match="even height and width, got a grid of 5x8"):
        within(model, odd, SDTM())
    model.transformer_blocks[0].set_chunk_feed_forward(32, 1)
    with pytest.raises(ValueError, match="chunk"):
        within(model, given, ToMe(feed_forward=True))
