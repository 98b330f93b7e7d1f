"""The speed bench: true architectures, FLOPs that are really counted, rows that say it all."""

import csv
import re
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import saved_model
from typer.testing import CliRunner

from hilotoken import HiLo, load_model, plan_tokens
from hilotoken.bench.measure import arch as archs
from hilotoken.bench.measure import speed
from hilotoken.bench.measure.arch import ARCHS, SCALES, Scale, build, scale_from, subject_of
from hilotoken.bench.measure.speed import bench_speed, cases, disc, graphs
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show import tables
from hilotoken.cli import app
from hilotoken.data.cases import CLASSES
from hilotoken.methods import FewerSteps, StepCache
from hilotoken.methods.parse import method_from

SIDE, TOKENS, TEXT = 128, 64, 6
TOY = Scale("toy", 1 / 19, 1 / 24)  # one head of 128
CPU = torch.device("cpu")
METHODS = {"hilo": HiLo(bucket=8)}
LENGTHS = {"short": HiLo(dilate=0, detail=0, coarse=0, bucket=4)}  # another under every mask


@pytest.fixture(scope="module", params=sorted(ARCHS))
def toy(request):
    return build(request.param, TOY, device=CPU, dtype=torch.float32, text=TEXT)


@pytest.fixture
def fill():
    """New for every test: what is compiled stays compiled."""
    return build("flux-fill", TOY, device=CPU, dtype=torch.float32, text=TEXT)


def rows_of(subject, methods=METHODS, masks="small,large", repeats=1, steps=1):
    wanted = cases(masks, SIDE)
    return list(bench_speed(subject, methods, wanted, steps=steps, repeats=repeats))


def flux_flops(config, text, tokens, kept=0):
    """FLOPs of one call of a FLUX transformer, by hand: two for each multiply-add."""
    D, S = config.num_attention_heads * config.attention_head_dim, text + tokens
    blocks = config.num_layers + config.num_single_layers
    linear = blocks * 12 * D**2 * S  # q, k, v and out, and a feedforward four times as wide
    attention = blocks * 2 * S * (S + kept) * D  # logits, and the weighted sum of the values
    modulation = (12 * config.num_layers + 3 * config.num_single_layers + 2) * D**2
    embedders = 2 * (256 * D + D**2) + config.pooled_projection_dim * D + D**2
    ends = tokens * (config.in_channels + config.out_channels) * D
    return 2 * (linear + attention + modulation + embedders + ends + text * 4096 * D)


@pytest.mark.parametrize("size", [SIDE, 192])
@pytest.mark.parametrize("text", [TEXT, 40])
def test_flops_are_those_counted_by_hand(toy, size, text):
    subject = build(toy.arch, TOY, device=CPU, dtype=torch.float32, text=text)
    methods = {"hilo": HiLo(bucket=8, coarse=0)}  # coarse tokens are averaged by matrix products
    for row in bench_speed(subject, methods, cases("small", size), steps=2, repeats=1):
        by_hand = 2 * flux_flops(subject.pipe.transformer.config, text, row.sequence_run)
        assert row.dit_tflops * 1e12 == pytest.approx(by_hand, rel=1e-12)


def test_making_coarse_tokens_is_not_counted_as_the_transformers_work(toy):
    rows = list(bench_speed(toy, METHODS, cases("small", 256), steps=1, repeats=1))
    assert rows[1].sequence_run < rows[0].sequence_run
    for row in rows:  # averaging them costs a little; encoding them would be far beyond this
        by_hand = flux_flops(toy.pipe.transformer.config, TEXT, row.sequence_run)
        assert row.dit_tflops * 1e12 == pytest.approx(by_hand, rel=0.005)


def test_steps_that_differ_are_all_counted(fill):
    reuse = HiLo(bucket=8, coarse=0, dilate=1, refresh=(0, 3))
    wanted, changes = cases("small", SIDE), {"cache": StepCache(1e9), "fewer": FewerSteps(0.5)}
    every = {"reuse": reuse, **changes}
    _, some, cached, fewer = bench_speed(fill, every, wanted, steps=4, repeats=1)
    mask = disc(SIDE, wanted[0].share).astype(np.float32)
    edit = plan_tokens(np.zeros((SIDE, SIDE, 3)), mask, grid=(8, 8), method=reuse).counts["edit"]
    assert some.tokens_run == round((some.sequence_run + edit) / 2)
    flops = partial(flux_flops, fill.pipe.transformer.config, TEXT)
    by_hand = 2 * flops(some.sequence_run) + 2 * flops(edit, kept=some.sequence_run - edit)
    assert some.dit_tflops * 1e12 == pytest.approx(by_hand, rel=1e-12)
    assert some.realised == pytest.approx(some.dit_speedup / some.flop_ratio)
    assert cached.tokens_run == TOKENS / 2  # all three blocks at one step, one at the other three
    assert cached.flop_ratio > 1.5
    assert fewer.flop_ratio == pytest.approx(2)


def test_what_runs_twice_is_counted_twice(fill):
    methods = {"once": HiLo(bucket=8), "aligned": HiLo(bucket=8, positions="aligned")}
    wanted = cases("small", 256)
    _, once, aligned = bench_speed(fill, methods, wanted, steps=1, repeats=1)
    assert once.tokens_run == aligned.tokens_run < once.tokens_full
    assert aligned.dit_tflops > once.dit_tflops


def test_compiled_blocks_are_counted_too_and_compile_once_for_every_mask(fill):
    eager = rows_of(fill, LENGTHS)
    assert len({row.tokens_run for row in eager}) == 3
    assert {(row.warm_graphs, row.new_graphs) for row in eager} == {(graphs(), 0)}
    torch._dynamo.reset()
    before = graphs()
    fill.compile(backend="eager")
    compiled = rows_of(fill, LENGTHS, repeats=2)
    assert {row.dit_tflops for row in compiled} == {row.dit_tflops for row in eager}
    assert {row.warm_graphs for row in compiled} == {graphs()}
    assert graphs() > before
    assert {row.new_graphs for row in compiled} == {0}


def test_graphs_compiled_anew_for_a_length_are_seen(fill):
    torch._dynamo.reset()
    fill.pipe.transformer.compile_repeated_blocks(dynamic=False, backend="eager")
    fill.compiled = True
    assert rows_of(fill, LENGTHS)[-1].new_graphs > 0


def test_full_scale_is_flux_and_small_has_its_width():
    with torch.device("meta"):
        full, vae = archs._parts("flux-fill", SCALES["full"])
        small, small_vae = archs._parts("flux-fill", SCALES["small"])
    assert sum(weight.numel() for weight in full.parameters()) == 11_902_391_360
    assert sum(weight.numel() for weight in vae.parameters()) == 83_819_683
    assert (full.config.num_layers, full.config.num_single_layers) == (19, 38)
    assert (small.config.num_layers, small.config.num_single_layers) == (1, 2)
    assert small.config.num_attention_heads == full.config.num_attention_heads == 24
    assert small_vae.config.block_out_channels[0] == 32
    ratios = [
        flux_flops(model.config, 512, 4096) / flux_flops(model.config, 512, 1152)
        for model in (full, small)
    ]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.01)


def test_the_page_says_what_the_tokens_allow():
    with torch.device("meta"):
        config = archs._parts("flux-fill", SCALES["full"])[0].config
    page = Path(__file__).parent.parent / "docs/explanation/speed.md"
    said = re.findall(r"^\| `(hilo.*?)` \|(.*x.*)$", page.read_text(), re.M)
    assert len(said) == 6
    for method, figures in said:
        told = re.findall(r"([\d.]+)x\W+(\d+)", figures)
        for share, (ratio, tokens) in zip(CLASSES.values(), told, strict=True):
            mask = torch.from_numpy(disc(1024, share)).float()
            photo = torch.rand(3, 1024, 1024, generator=torch.Generator().manual_seed(0))
            plan = plan_tokens(photo, mask, grid=(64, 64), method=method_from(*method.split()))
            fewer = flux_flops(config, 512, 4096) / flux_flops(config, 512, plan.tokens_run)
            assert (plan.tokens_run, f"{fewer:.2f}") == (int(tokens), ratio)


def test_building_leaves_dtype_and_generator_alone_and_repeats_itself():
    before, state = torch.get_default_dtype(), torch.get_rng_state()
    one, two = (build("flux-fill", TOY, device=CPU, dtype=torch.bfloat16, text=3) for _ in "ab")
    assert torch.get_default_dtype() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert one.arguments["prompt_embeds"].shape == (1, 3, 4096)
    for model in (one.pipe.transformer, one.pipe.vae):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    pairs = zip(one.pipe.transformer.parameters(), two.pipe.transformer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=r"unknown arch 'flux'.*flux-fill"):
        build("flux", TOY, device=CPU, dtype=torch.float32)
    assert torch.get_default_dtype() == before


def test_what_memory_cannot_hold_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(archs.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**22}.get)
    with pytest.raises(ValueError, match=r"12\.0 B parameters, 22 GiB in bfloat16.*room for 16"):
        build("flux-fill", SCALES["full"], device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize("text", ["huge", "0", "-1", "1.1", "nan", ""])
def test_a_scale_is_a_name_or_a_share(text):
    assert scale_from("0.25") == Scale("0.25", 0.25)
    with pytest.raises(ValueError, match=f"unknown scale '{text}'.*small.*up to 1"):
        scale_from(text)


def test_masks_are_classes_or_shares():
    assert [case.share for case in cases("small, 0.2", SIDE)] == [CLASSES["small"], 0.2]
    for wrong in ("tiny", "0", "0.8", "", "nan"):
        with pytest.raises(ValueError, match=f"unknown mask '{wrong}'"):
            cases(f"small,{wrong}", SIDE)
    with pytest.raises(ValueError, match="multiple of 16 pixels, got 100"):
        cases("small", 100)


@pytest.mark.parametrize("share", [*CLASSES.values(), 0.02, 0.75])
def test_the_disc_covers_its_share(share):
    assert disc(512, share).mean() == pytest.approx(share, rel=0.01)


def test_rows_interleave_and_compare_with_the_dense_edit_of_their_round(toy):
    rows = rows_of(toy, masks=",".join(CLASSES), repeats=2, steps=2)
    kontext = toy.arch == "flux-kontext"
    assert [row.method for row in rows] == ["dense", "hilo"] * 2 * len(CLASSES)
    assert [row.repeat for row in rows] == [0, 0, 1, 1] * len(CLASSES)
    for dense, hilo in zip(rows[::2], rows[1::2], strict=True):
        assert dense.dit_speedup == dense.speedup == dense.flop_ratio == dense.realised == 1
        assert hilo.dit_speedup == pytest.approx(dense.dit_seconds / hilo.dit_seconds)
        assert hilo.speedup == pytest.approx(dense.total_seconds / hilo.total_seconds)
        assert hilo.flop_ratio == pytest.approx(dense.dit_tflops / hilo.dit_tflops)
        assert hilo.realised == pytest.approx(hilo.dit_speedup / hilo.flop_ratio)
        assert hilo.plan_share == pytest.approx(hilo.plan_seconds / dense.dit_seconds)
        assert (hilo.flop_ratio > 1) == (hilo.tokens_run < TOKENS)
        assert dense.tokens_run == dense.tokens_full == TOKENS
        assert dense.sequence_run == dense.sequence_full == TOKENS * (2 if kontext else 1)
    for row in rows:
        parts = (row.dit_seconds, row.vae_seconds, row.rest_seconds)
        assert sum(parts) == pytest.approx(row.total_seconds)
        assert min(parts) > 0
        assert row.processor_seconds > 0
        assert row.peak_gib is None  # on a CPU it would say nothing
        assert (row.arch, row.scale, row.text) == (toy.arch, "toy", TEXT)
        assert row.shape.startswith("1+2 blocks of 1x128, ")


def test_nothing_stays_on_the_pipeline(fill, monkeypatch):
    rows_of(fill)

    def broken(*args, **kwargs):
        raise RuntimeError("in a step")

    monkeypatch.setattr(fill.pipe.scheduler, "step", broken)
    with pytest.raises(RuntimeError, match="in a step"):
        rows_of(fill)
    for module in fill.pipe.transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("toy", ["flux-inpaint"], indirect=True)
def test_the_embedded_model_brings_its_prompt_and_another_is_given_one(toy):
    embedded = subject_of(load_model(saved_model()), 40)
    assert (embedded.arch, embedded.text, embedded.arguments) == ("embedded", 8, {})
    assert {row.text for row in rows_of(embedded, masks="small")} == {8}
    loaded = subject_of(toy.pipe, 40)
    assert {row.text for row in rows_of(loaded, masks="small")} == {40}


def test_the_limit_runs_the_touched_tokens_alone(fill):
    methods = METHODS | {tables.LIMIT: tables.LIMIT_METHOD}
    for case in tables.curve_cases("mask", cases("small", SIDE)[0])[::4]:
        _, hilo, limit = bench_speed(fill, methods, [case], steps=1, repeats=1)
        touched = disc(SIDE, case.share).reshape(8, 16, 8, 16).any((1, 3)).sum()
        assert limit.tokens_run == touched <= hilo.tokens_run


def test_curves_go_along_one_thing_and_are_drawn(fill, tmp_path):
    first = cases("medium,small", 512)[0]
    assert [case.size for case in tables.curve_cases("size", first)] == [256, 512]
    assert {case.share for case in tables.curve_cases("size", first)} == {CLASSES["medium"]}
    assert {case.size for case in tables.curve_cases("mask", first)} == {512}
    with pytest.raises(ValueError, match=r"unknown curve 'time'.*mask.*size"):
        tables.curve_cases("time", first)
    rows = rows_of(fill)
    for curve in ("size", "mask"):
        tables.plot_curve(rows, curve, tmp_path / f"{curve}.svg")
        assert "<svg" in (tmp_path / f"{curve}.svg").read_text()


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "speed", *map(str, arguments)])


SHORT = ("--size", SIDE, "--steps", 1, "--repeats", 1)


def test_the_command_prints_tables_and_writes_rows(tmp_path):
    path = tmp_path / "rows.csv"
    arguments = ("--model", saved_model(), *SHORT, "-o", path)
    result = run(*arguments, "--method", "hilo detail=0.5 bucket=8")
    assert result.exit_code == 0, result.output
    for word in ("small", "realised", "VAE", "plan"):  # a narrow screen wraps between words
        assert word in result.output
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * len(CLASSES)
    assert rows[0]["peak_gib"] == ""
    wrong = run(*arguments, "--method", "hilo detail=5")
    assert wrong.exit_code == 2
    assert "detail" in wrong.output


def test_an_arch_on_the_command_line_with_its_curve(tmp_path):
    path, plot = tmp_path / "rows.csv", tmp_path / "curve.svg"
    small = ("--arch", "flux-fill", "--scale", "tiny", "--text", 8, *SHORT, "--masks", "0.1,0.2")
    result = run(*small, "--dtype", "bfloat16", "--curve", "size", "-o", path, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert plot.is_file()
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == ["dense", "hilo", tables.LIMIT]
    assert {(row["arch"], row["scale"], row["dtype"], row["text"]) for row in rows} == {
        ("flux-fill", "tiny", "bfloat16", "8")
    }


def test_a_run_that_is_stopped_keeps_its_rows(tmp_path, monkeypatch):
    path, count = tmp_path / "rows.csv", iter(range(100))
    edit = speed.edit

    def stopping(*args, **kwargs):
        if next(count) == 4:  # two to warm up, a round of two, and no more
            raise KeyboardInterrupt
        return edit(*args, **kwargs)

    monkeypatch.setattr(speed, "edit", stopping)
    result = run("--model", saved_model(), *SHORT, "-o", path)
    assert result.exit_code == 130
    assert "realised" in result.output
    assert path.read_text().count("\n") == 1 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "flux-fil"), "unknown arch 'flux-fil'"),
        (("--scale", "small"), "omit --scale small"),
        (("--arch", "flux-fill", "--model", "x"), "omit --arch flux-fill"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--curve", "time"), "unknown curve 'time'"),
        (("--masks", "all"), "unknown mask 'all'"),
        (("--size", 200), "multiple of 16 pixels, got 200"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_rows_of_another_kind_are_refused_before_anything_is_timed(tmp_path, monkeypatch):
    path = tmp_path / "old.csv"
    path.write_text("mask_class,mask_share\nsmall,0.06\n")
    monkeypatch.setattr(speed, "bench_speed", pytest.fail)
    result = run("--model", saved_model(), *SHORT, "-o", path)
    assert result.exit_code == 2
    assert "another kind" in result.output
    assert path.read_text().count("\n") == 2


def test_columns_are_the_fields_and_their_origin(fill, tmp_path):
    append_rows(tmp_path / "rows.csv", rows_of(fill, {}, "small"))
    header = (tmp_path / "rows.csv").read_text().partition("\n")[0].split(",")
    assert header[: len(fields(speed.SpeedRow))] == [one.name for one in fields(speed.SpeedRow)]
    assert {"command", "commit", "machine", "torch", "diffusers", "date"} <= set(header)
