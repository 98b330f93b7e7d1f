"""Attention within phases: who sees whom, nothing dropped, and that it trains."""

import pytest
import torch
from models import GRID, MODELS, flux, pixart
from test_blocks import STEPS, N, run, state, within, worst
from torch import nn

from hilotoken.attention import rerouted
from hilotoken.bench.measure.flops import count_flops
from hilotoken.blocks.attach import placed
from hilotoken.layout import layout_of
from hilotoken.methods import HiLo, UDiTAttention, Within


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    model, given, _ = request.param()
    for module in model.modules():  # wide enough that every token counts
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval(), given


def test_one_phase_is_the_model_as_it_is(case):
    model, given = case
    plain, before = run(model, given), state(model)
    assert torch.equal(within(model, given, UDiTAttention(factor=1)), plain)
    assert worst(within(model, given, UDiTAttention()), plain) > 1e-3
    assert state(model) == before


@pytest.mark.parametrize("factor", [2, 4])
def test_each_phase_sees_itself_and_text_and_text_sees_all(case, factor):
    """Against a mask from every query to every key."""
    model, given = case
    first = layout_of(model).text_first
    row, column = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    phase_N = (row % factor * factor + column % factor).flatten()

    def attend(module, query, key, value, original, **kwargs):
        start = key.shape[1] - N if first else 0
        seen = torch.ones(key.shape[1], key.shape[1], dtype=torch.bool)
        image = slice(start, start + N)
        seen[image, image] = phase_N[:, None] == phase_N
        seen = seen.expand(len(query), 1, -1, -1)
        own = kwargs.pop("attn_mask", None)
        if own is not None:
            seen = seen & own
        return original(query, key, value, attn_mask=seen, **kwargs)

    blocks = layout_of(model).blocks(model)
    with rerouted(model, attend, [m for b in blocks for m in b.attentions]):
        expected = run(model, given)
    assert worst(within(model, given, UDiTAttention(factor=factor)), expected) <= 1e-5


def test_no_token_is_dropped_and_attention_costs_its_share():
    model, given, _ = pixart()
    with placed(model, UDiTAttention(), STEPS) as placement:
        short = count_flops(lambda: run(model, given), model)
    assert placement.kept == {"queries": 1, "keys": 1, "feed_forward": 1}
    whole = count_flops(lambda: run(model, given), model)
    blocks, batch, channels = 2, 2, 32
    attention = 4 * batch * N * N * channels * blocks  # QK and AV, two FLOPs each
    assert whole - short == pytest.approx(attention * 3 / 4)


def test_a_model_trains_with_it():
    torch.manual_seed(0)
    model, given, _ = flux()
    target = torch.randn(2, N, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    with placed(model, UDiTAttention(), STEPS):
        for _ in range(8):
            loss = (model(**given, return_dict=False)[0] - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    gradients = [p.grad for b in model.transformer_blocks for p in b.attn.parameters()]
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert model.transformer_blocks[0].attn.to_q.weight.grad.abs().max() > 0


def test_what_has_no_phases_is_refused():
    with pytest.raises(ValueError, match="factor must divide the grid of 8x8, got 3"):
        within(*flux()[:2], UDiTAttention(factor=3))
    with pytest.raises(ValueError, match="whole number of 1 or more"):
        UDiTAttention(factor=0)
    with pytest.raises(ValueError, match="weights has no meaning"):
        UDiTAttention(weights=True)
    with pytest.raises(ValueError, match="needs a whole grid"):
        Within(HiLo(), UDiTAttention())
