"""The ablation: one choice at a time, at equal length, resumable, and a compass that points."""

import numpy as np
import pytest
import torch
from tiny import arguments, make_photo, make_pipe
from toys import interrupt_at, saved_model

from hilotoken import Dense, HiLo, load_model
from hilotoken.bench.measure import ablate as ablation
from hilotoken.bench.measure.ablate import GROUPS, bench_ablate, contests
from hilotoken.bench.measure.compass import Compass
from hilotoken.bench.results.readings import read_rows
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.markdown import tables
from hilotoken.cli.bench_evidence import ablate
from hilotoken.data.cases import CLASSES
from hilotoken.metrics.lpips import LPIPS

SIDE = 256


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        make_photo(SIDE, SIDE, seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    pipe = load_model(saved_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _contests(photos, *groups, steps=8):
    return contests(sorted(photos.iterdir()), SIDE, groups or list(GROUPS), steps)


def test_variants_of_a_group_run_equally_many_tokens_and_differ_in_nothing_else(photos):
    found = _contests(photos)
    assert [contest.case.mask_class for contest in found] == [*CLASSES, *CLASSES]
    compared = set()
    for contest in found:
        for group in set(GROUPS) - {"allocation"}:
            names = [name for g, name in contest.methods if g == group]
            if not names:  # all tokens would run
                continue
            assert names == list(GROUPS[group])
            compared.add(group)
            plans = [ablation._plan(contest.case, contest.methods[group, n]) for n in names]
            assert len({plan.tokens_run for plan in plans}) == 1
            assert plans[0].tokens_run < plans[0].tokens_full
    assert compared == set(GROUPS) - {"allocation"}


def test_an_allocation_by_energy_runs_as_many_tokens_on_the_mean(photos):
    run: dict[tuple[str, str], list[int]] = {}
    for contest in _contests(photos, "allocation"):
        for (_, name), method in contest.methods.items():
            plan = ablation._plan(contest.case, method)
            run.setdefault((contest.case.mask_class, name), []).append(plan.tokens_run)
    assert ("small", "energy") in run
    for (mask_class, _), counts in run.items():
        assert np.mean(counts) == pytest.approx(np.mean(run[mask_class, "detail"]), rel=0.02)


def test_what_refreshes_seldom_gets_more_context_for_the_same_mean(photos):
    contest = _contests(photos, "refresh")[0]
    every = ablation._plan(contest.case, contest.methods["refresh", "every step"])
    for (_, name), method in contest.methods.items():
        plan = ablation._plan(contest.case, method)
        if name == "every step" or plan.tokens_run == plan.tokens_full:
            continue
        share = len(method.refresh.at) / 8
        mean = share * plan.tokens_run + (1 - share) * plan.counts["edit"]
        assert mean == pytest.approx(every.tokens_run, abs=1)
        assert plan.tokens_run > every.tokens_run
    with pytest.raises(ValueError, match="6 or more"):
        _contests(photos, "refresh", steps=4)


def test_unknown_groups_and_sizes_are_refused(photos):
    with pytest.raises(ValueError, match="unknown group 'colour'"):
        _contests(photos, "colour")
    with pytest.raises(ValueError, match="multiple of 16"):
        contests([], 250, ["score"], 8)


def _given():
    given = arguments()
    for name in ("generator", "num_inference_steps", "output_type"):
        given.pop(name)
    return given


def test_the_compass_of_all_tokens_is_dense_to_the_bit_and_fewer_tokens_move_it():
    compass = Compass(make_pipe(), _given(), seed=3)
    assert compass.errors(Dense()) == compass.dense
    assert compass.ratio(HiLo(dilate=16)) == 1
    assert compass.ratio(HiLo(dilate=0, detail=0, coarse=0, bucket=1)) != 1


def test_the_compass_is_the_error_of_the_velocity_in_the_mask():
    """Against the transformer called by hand, and a transformer that knows the answer."""
    pipe = make_pipe()
    compass = Compass(pipe, _given(), seed=3, calls=3)
    wanted = compass.noise_BNC - compass.x0_BNC
    assert float(compass.noise_BNC.std()) == pytest.approx(1, abs=0.05)
    off = torch.where(compass.inside_N[:, None], 0.5, 9.0)
    handle = pipe.transformer.register_forward_hook(lambda m, a, out: (wanted + off,))
    try:
        assert compass.errors(Dense()) == pytest.approx([0.25] * 3, rel=1e-4)
    finally:
        handle.remove()
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["hidden_states"][..., :16]), with_kwargs=True
    )
    compass.errors(HiLo(bucket=16))
    handle.remove()
    sigmas = pipe.scheduler.sigmas[:3]
    for x_BNC, sigma in zip(seen, sigmas, strict=True):
        x_t = (1 - sigma) * compass.x0_BNC + sigma * compass.noise_BNC
        assert torch.allclose(x_BNC, x_t, atol=1e-5)


def test_the_compass_leaves_no_hook():
    pipe = make_pipe()
    Compass(pipe, _given(), seed=3, calls=1).ratio(HiLo(bucket=16))
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks


def test_rows_hold_both_figures_and_are_not_measured_twice(model, photos, tmp_path):
    torch.manual_seed(0)
    perceptual = LPIPS().requires_grad_(False)
    case = _contests(photos, "positions")[0]
    rows = list(bench_ablate(model, case, perceptual, steps=1))
    assert [row.variant for row in rows] == list(GROUPS["positions"])
    assert [row.default for row in rows] == [True, False, False]
    assert rows[1].options.startswith("hilo positions=aligned bucket=")
    for row in rows:
        assert None not in (row.velocity, row.psnr_dense, row.lpips, row.lpips_over_dense)
    done = {(rows[0].photo, rows[0].mask_class, "positions", v) for v in GROUPS["positions"]}
    assert list(bench_ablate(model, case, perceptual, steps=1, done=done)) == []
    append_rows(tmp_path / "a.csv", rows)
    text = tables(read_rows(tmp_path / "a.csv"), {})
    assert "| positions | interpolated (default) |" in text
    assert "| choice | best |" in text


def test_an_interrupted_ablation_goes_on_where_it_was(photos, tmp_path, monkeypatch, capsys):
    output, folder = tmp_path / "a.csv", saved_model()
    run = lambda: ablate(photos, output, None, "positions", str(folder), SIDE, 8, 1, "cpu")  # noqa: E731
    with monkeypatch.context() as patch:
        interrupt_at(patch, Compass, "__init__", 2)
        with pytest.raises(KeyboardInterrupt):
            run()
    first = output.read_text()
    assert first.count("\n") == 4  # a header and one case
    run()
    assert output.read_text().startswith(first)
    keys = [(r.photo, r.mask_class, r.variant) for r in read_rows(output).rows.itertuples()]
    assert len(keys) == len(set(keys)) >= 6
    assert "positions" in capsys.readouterr().out
    (tmp_path / "b.csv").write_text("mask_class,method,dit_speedup,dit_seconds\nsmall,hilo,2,1\n")
    with pytest.raises(ValueError, match="name a new file"):
        ablate(photos, tmp_path / "b.csv")


def test_the_winner_is_named_and_told_from_chance(tmp_path):
    def write(gap, noise, photos=20):
        lines = ["photo,mask_class,group,variant,default,velocity,"
                 "mean_tokens_run,psnr_dense,lpips_over_dense"]  # fmt: skip
        for i in range(photos):
            for name, usual, error in (("laplacian", True, 1.03), ("random", False, 1.03 - gap)):
                value = error + i / 100 + (name == "random") * noise * (-1) ** i
                lines.append(f"{i},small,score,{name},{usual},{value},100,,")
        path = tmp_path / f"{gap}.csv"
        path.write_text("\n".join(lines) + "\n")
        return tables(read_rows(path), {}).splitlines()[-1]

    sure = write(0.01, 0.001)
    assert sure.startswith("| score | random | velocity | -1.00 (-1.0")
    assert sure.endswith("| leaves 0 out |")
    assert "no reason to change" in write(0.001, 0.01)
    assert "it is the default" in write(-0.01, 0.001)
    assert "of 3 photographs: too few to tell" in write(0.01, 0.001, photos=3)
