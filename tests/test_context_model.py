"""The context-bound model of `benchmarks/context`: its pictures, its selections, its counts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from benchmarks.context import train
from benchmarks.context.coverage import Told
from benchmarks.context.evaluate import (
    NOTHING,
    WHOLE,
    Bench,
    Case,
    arguments,
    held_out,
    in_noise,
    selections,
)
from benchmarks.context.flops import CONTEXT
from benchmarks.context.model import WEIGHTS, ContextModel, load, tokens_of
from benchmarks.context.photo_tables import shown
from benchmarks.context.pictures import (
    BROAD,
    GRID,
    HIDDEN,
    KINDS,
    PATCH,
    Pictures,
    draw,
    enlarge,
)
from benchmarks.context.rows import ORIGINS, RESULTS, append, read
from benchmarks.context.selections import (
    Attended,
    Pyramid,
    PyramidFill,
    Spread,
    cell_names,
    experimental,
    foveated,
    growing_cells,
    one_a_cell,
)
from hilotoken import HiLo, Refresh, adapters, compress, lane
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.bench.results.rows import ORIGIN
from hilotoken.methods import Dense
from hilotoken.plan import cells_of


@pytest.fixture(scope="module")
def untrained() -> ContextModel:
    torch.manual_seed(0)
    model = ContextModel().eval()
    return model.requires_grad_(False)


@pytest.fixture
def case() -> Case:
    return held_out("spot", 1)[0]


def _run(model: ContextModel, case: Case, method: object, **options: object) -> Tensor:
    given = arguments([case], model) | {"num_inference_steps": 2}
    return compress(model.pipeline(), method)(**given | options).images  # type: ignore[arg-type]


# The pictures.


@pytest.mark.parametrize("kind", [*KINDS, *BROAD])
def test_what_is_needed_is_far_and_always_there(kind: str) -> None:
    drawn = draw(kind, 64, Generator().manual_seed(0))
    near = enlarge(drawn.mask_Bhw).float()[:, None]
    near = torch.nn.functional.max_pool2d(near, 2 * 2 * PATCH + 1, 1, 2 * PATCH)[:, 0] > 0
    assert not (near & enlarge(drawn.need_Bhw)).any()
    assert drawn.told(torch.ones(64, GRID, GRID, dtype=torch.bool)).all()
    assert not drawn.told(~drawn.need_Bhw).any()
    assert drawn.image_B3HW.abs().max() <= 1
    again = draw(kind, 64, Generator().manual_seed(0))
    assert torch.equal(drawn.image_B3HW, again.image_B3HW)


@pytest.mark.parametrize("kind", ["spot", "legend"])
def test_the_hidden_colour_is_that_of_the_frame_which_tells_it(kind: str) -> None:
    drawn = draw(kind, 32, Generator().manual_seed(1))
    for i in range(32):
        row, column = _corner(drawn.need_Bhw[i])
        inside = drawn.image_B3HW[i, :, PATCH * row + 3, PATCH * column + 3]
        assert (_hidden(drawn, i) == inside[:, None, None]).all()


def test_the_hidden_colour_goes_on_evenly_from_the_row() -> None:
    drawn = draw("row", 32, Generator().manual_seed(1))
    for i in range(32):
        places = drawn.need_Bhw[i].nonzero()
        first, last = places[0], places[-1] - 1
        one, other = (
            drawn.image_B3HW[i, :, PATCH * int(p[0]) + 3, PATCH * int(p[1]) + 3]
            for p in (first, last)
        )
        at, a, b = (int(sum(p)) for p in (_corner(drawn.mask_Bhw[i]), first, last))
        expected = one + (other - one) * (at - a) / (b - a)
        assert torch.allclose(_hidden(drawn, i)[:, 0, 0], expected, atol=1e-6)


def test_a_line_is_broken_off_around_the_mask_and_goes_on_in_it() -> None:
    drawn = draw("line", 64, Generator().manual_seed(1))
    colours = [image.flatten(1).unique(dim=1).shape[1] for image in drawn.image_B3HW]
    assert set(colours) == {2}
    for i in range(64):
        assert _hidden(drawn, i).flatten(1).unique(dim=1).shape[1] == 2


@pytest.mark.parametrize("kind", BROAD)
def test_the_hidden_colour_is_that_of_every_token_that_tells_it(kind: str) -> None:
    drawn = draw(kind, 32, Generator().manual_seed(1))
    for i in range(32):
        told = drawn.image_B3HW[i, :, enlarge(drawn.need_Bhw[i])]
        assert told.shape[1] >= 48 * PATCH**2
        assert (told == _hidden(drawn, i)[:, :1, 0]).all()


@pytest.mark.parametrize("kind", ["twin", "repeat"])
def test_every_hidden_token_stands_in_its_group(kind: str) -> None:
    drawn = draw(kind, 32, Generator().manual_seed(1))
    tokens_BNC = tokens_of(drawn.image_B3HW)
    for i in range(32):
        hidden = tokens_BNC[i, drawn.mask_Bhw[i].flatten()]
        for token, group_hw in zip(hidden, drawn.tell_BGhw[i], strict=True):
            copies = tokens_BNC[i, group_hw.flatten()]
            assert len(copies)
            assert (copies == token).all()


def _corner(chosen_hw: Tensor) -> tuple[int, int]:
    row, column = chosen_hw.nonzero()[0].tolist()
    return row, column


def _hidden(drawn: Pictures, i: int) -> Tensor:
    where = enlarge(drawn.mask_Bhw[i])
    return drawn.image_B3HW[i, :, where].unflatten(1, (HIDDEN * PATCH, HIDDEN * PATCH))


# The selections.


def test_foveated_context_grows_with_the_logarithm_of_the_photo() -> None:
    """A mask of 256 x 256 px: 16 x 16 tokens of 64 x 64 at 1024 px, and of 256 x 256 at 4096."""
    run = {}
    for side in (64, 128, 256):
        touched = torch.zeros(side, side, dtype=torch.bool)
        touched[20:36, 20:36] = True
        score = torch.zeros(side**2)
        run[side] = foveated(1.0, bucket=1).select(score, touched, (side, side)).tokens_run
        even = (
            Spread(context="sampled", detail=0.0, bucket=1)
            .select(score, touched, (side, side))
            .tokens_run
        )
    assert run[256] <= 1.3 * run[64] < even
    assert run[256] - run[128] <= 1.5 * (run[128] - run[64])  # as many more for each doubling


def test_cells_are_squares_no_larger_than_they_are_far() -> None:
    edit = torch.zeros(32, 32, dtype=torch.bool)
    edit[10:15, 3:9] = True
    side = growing_cells(edit, 1.0).flatten()
    name = cell_names(growing_cells(edit, 1.0))
    for cell in name.unique():
        inside = name == cell
        assert inside.sum() == side[inside][0] ** 2
    assert (side[edit.flatten()] == 1).all()
    assert side.max() == 8


@pytest.mark.parametrize("total", [0, 90, 150, 256])
@pytest.mark.parametrize("foveal", [False, True])
def test_every_token_is_stood_for_once(total: int, foveal: bool) -> None:
    edit = torch.zeros(GRID, GRID, dtype=torch.bool)
    edit[4:9, 2:7] = True
    cells = cell_names(growing_cells(edit, 2.0)) if foveal else cells_of((GRID, GRID), 3)
    runs, count = one_a_cell(edit.flatten(), cells, total, Generator().manual_seed(0))
    assert runs.sum() >= total
    assert runs.sum() == total or total < 90
    assert count[runs].sum() == GRID**2
    assert (count[edit.flatten()] == 1).all()


def test_no_token_weighs_more_than_another_on_the_mean() -> None:
    """Horvitz and Thompson: the mean weight over many draws is 1, with tokens added up to a sum."""
    edit = torch.zeros(GRID, GRID, dtype=torch.bool)
    edit[4:9, 2:7] = True
    weight = torch.zeros(GRID**2)
    for seed in range(600):
        draw_of = Generator().manual_seed(seed)
        runs, count = one_a_cell(edit.flatten(), cells_of((GRID, GRID), 2), 128, draw_of)
        weight += runs * count
    assert weight.min() > 0.75 * 600
    assert weight.max() < 1.25 * 600


def test_a_pyramid_covers_the_grid_once(case: Case) -> None:
    plan = case.plan(Pyramid(bucket=1))
    assert plan.count_S.sum() == GRID**2
    assert plan.tokens_run == len(plan.count_S) == len(plan.keep_K) + len(plan.cells_M)


def test_selections_at_every_step_run_the_papers_count(case: Case) -> None:
    total = case.plan(HiLo(bucket=1)).tokens_run
    made = selections(case)
    for name in ("detail", "detail, mixed scores", "random", "half detail, half random"):
        assert case.plan(made[name][0]).tokens_run == total, name


def test_pictures_under_one_mask_are_filled_as_each_alone(
    untrained: ContextModel, case: Case
) -> None:
    bench = Bench.__new__(Bench)
    bench.model, bench.pipe = untrained, untrained.pipeline()
    other = replace(case.picture, image_B3HW=-case.picture.image_B3HW)
    cases = [case, Case("legend", 1, other)]
    for name in ("paper", "whole, twice", "detail and sampled 3, twice"):
        method = selections(cases[0])[name][0]
        together = bench.fill(cases, method, 2)[0]
        alone = [bench.fill([case], method, 2)[0] for case in cases]
        assert torch.allclose(together, torch.cat(alone), atol=1e-4)


# The model under `compress`.


def test_keeping_every_token_changes_nothing(untrained: ContextModel, case: Case) -> None:
    plain = _run(untrained, case, Dense())
    every = HiLo(detail=1.0, coarse=0)
    assert torch.equal(_run(untrained, case, every), plain)


def test_a_model_that_sees_x_t_alone_is_shown_nothing_beside_it() -> None:
    torch.manual_seed(0)
    model = ContextModel(shown=False).eval().requires_grad_(False)
    case = held_out("band", 1)[0]
    plain = _run(model, case, Dense())
    assert torch.equal(_run(model, case, HiLo(detail=1.0, coarse=0)), plain)
    # Outside the mask it is the picture; in it, something else.
    hidden = case.picture.mask_Bhw.flatten()
    apart_N = (plain - tokens_of(case.picture.image_B3HW)).abs().amax(2)[0]
    assert apart_N[~hidden].max() < 1e-5 < apart_N[hidden].min()
    with pytest.raises(ValueError, match="keeps keys of noise"):
        _run(model, case, WHOLE)
    given = in_noise(case)
    for name in ("paper", "whole, at 0 and 3", "preset balanced"):
        assert _run(model, case, given[name][0], num_inference_steps=8).isfinite().all(), name


def test_keeping_all_that_is_attended_is_keeping_the_whole(
    untrained: ContextModel, case: Case
) -> None:
    attended = Attended(detail=1.0, coarse=0, bucket=1, refresh=(0,), share=1.0)
    few = replace(attended, share=0.1)
    whole = _run(untrained, case, WHOLE)
    with experimental():
        assert torch.equal(_run(untrained, case, attended), whole)
        assert not torch.equal(_run(untrained, case, few), whole)


def test_nothing_experimental_is_left_behind() -> None:
    before = dict(adapters.ADAPTERS), lane.Reuse
    with experimental():
        assert PyramidFill in adapters.ADAPTERS.values()
    assert (dict(adapters.ADAPTERS), lane.Reuse) == before


METHODS = {
    "dense": Dense(),
    "edit": NOTHING,
    "paper": HiLo(bucket=1),
    "sampled": Spread(context="sampled", detail=0.0, bucket=1),
    "foveated": foveated(2.0, bucket=1, refresh=(0,)),
    "whole": WHOLE,
    "text kept": replace(WHOLE, refresh=Refresh((0,), text=True)),
    "pyramid": Pyramid(bucket=1),
    "attended": Attended(detail=1.0, coarse=0, bucket=1, refresh=(0,)),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_arithmetic_of_flops_is_what_is_counted(
    untrained: ContextModel, case: Case, name: str
) -> None:
    method, pipe = METHODS[name], untrained.pipeline()
    fast = compress(pipe, method)
    given = arguments([case], untrained) | {"num_inference_steps": 3}
    with experimental():
        counted = sum(flops_by_pass(lambda: fast(**given), pipe.transformer))
    assert fast.last_run is not None
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    told = CONTEXT.edit(fast.last_run.plan, method, sigmas)
    # The averages over coarse cells are not in the arithmetic.
    assert told == pytest.approx(counted, rel=0.01 if name in ("paper", "pyramid") else 1e-6)


# Training.


def test_a_training_broken_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HELD_OUT", 1)
    whole = train.Run(tmp_path / "a", 0, 8, 2, (0.1, 0.2))
    whole.go(every=100)
    broken = train.Run(tmp_path / "b", 0, 8, 2, (0.1, 0.2))
    broken._one_step()
    broken.log += broken._curve()
    broken._save()
    resumed = train.Run(tmp_path / "b", 0, 8, 2, (0.1, 0.2))
    resumed.go(every=100)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_goes_on_from_weights_with_the_kinds_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HELD_OUT", 1)
    run = train.Run(tmp_path, 5, 8, 4, begin="dense", kinds=["twin"])
    known = load("dense").state_dict()
    assert all(torch.equal(mine, known[name]) for name, mine in run.model.state_dict().items())
    before = run.error_K.clone()
    run._one_step()
    assert run.names[int((run.error_K != before).nonzero())] == "twin"


# What is committed.


def test_what_an_interval_shows_is_said_by_its_margin() -> None:
    assert shown("psnr", 0.05, 0.2) == "equivalent"
    assert shown("psnr", -0.3, 0.2) == "undecided"
    assert shown("psnr", 0.05, 0.3) == shown("lpips", -0.006, -0.001) == "better"
    assert shown("psnr", -0.3, -0.05) == shown("lpips", 0.001, 0.006) == "worse"


def test_the_trained_model_needs_its_context() -> None:
    bench, found = Bench("dense"), {"dense": 0.0, "edit only": 0.0}
    with torch.no_grad():
        for case in held_out("spot", 4):
            dense = bench.fill([case], Dense())[0]
            for name in found:
                found[name] += bench.rows([case], name, dense)[0].psnr / 4
    assert found["dense"] > found["edit only"] + 10


def test_every_file_of_rows_says_how_it_was_made(tmp_path: Path) -> None:
    told = read(RESULTS / ORIGINS)
    assert {row["file"] for row in told} == {f.name for f in RESULTS.glob("*.csv")} - {ORIGINS}
    assert all(row[name] for row in told for name in ORIGIN)
    for number in (1, 2):
        append(tmp_path / "rows.csv", Told("spot", "plain", "dense", number, 256.0, 1.0, 1))
    (line,) = read(tmp_path / ORIGINS)
    assert list(line) == ["file", *ORIGIN]
    assert [row["pictures"] for row in read(tmp_path / "rows.csv")] == ["1", "2"]


def test_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.glob("*")) <= 8 * 2**20


def test_tokens_are_packed_as_the_pipeline_packs_them(untrained: ContextModel) -> None:
    image = torch.rand(1, 3, 64, 64, generator=Generator().manual_seed(0))
    pipe = untrained.pipeline()
    packed = pipe._pack_latents(pipe.vae.encode(image).latents, 1, 12, 32, 32)
    assert torch.equal(tokens_of(image), packed)
