"""Rows read back, and the report, plots and tables made of them."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.documents import marked, printed, refreshed
from hilotoken.bench.results.readings import (
    OPENCV,
    cost,
    difference,
    figure,
    groups_of,
    narrowed,
    read_rows,
    verdict,
    with_best_classical,
)
from hilotoken.bench.show.difficulty import divided
from hilotoken.bench.show.markdown import labels_from, parts_of, tables
from hilotoken.bench.show.plots import plot_quality
from hilotoken.cli.bench_evidence import difficulty, plot, report

CLASSES = {"small": 0.06, "large": 0.35}
# What LPIPS each is made to have over dense's, and the tokens it runs of 256.
METHODS = {"telea": (0.2, 0), "dense": (0, 256), "hilo": (0, 100), "random_keep": (0.05, 100)}
ORIGIN = {"command": "hilo bench fill <photos>", "commit": "1234567", "machine": "a CPU"}


def _write(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _fill(photo, mask_class, method, seed, rng):
    worse, tokens = METHODS[method]
    hard = photo / 10  # photographs differ far more than methods do
    return {
        "photo": f"{photo}.jpg", "mask_class": mask_class, "mask_share": CLASSES[mask_class],
        "method": method, "seed": seed, "tokens_full": 256 if tokens else 0, "tokens_run": tokens,
        "dit_seconds": tokens / 100, "psnr": 20 - hard,
        "lpips": 0.3 + hard + worse + rng.normal(0, 0.001),
        "psnr_dense": 168.13 if method == "dense" else 40.0,
        "lpips_dense": 0.0 if method == "dense" else 0.1, "ssim": 0.5, **ORIGIN,
    }  # fmt: skip


@pytest.fixture
def fills(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        _fill(photo, mask_class, method, seed, rng)
        for photo in range(8)
        for seed in (1, 2)
        for mask_class in CLASSES
        for method in METHODS
    ]
    return _write(tmp_path / "fill.csv", rows)


@pytest.fixture
def regions(fills, tmp_path):
    """The same with what later rows have; OpenCV has no raw picture."""
    rows, around = [], {"telea": "", "dense": 168.1, "hilo": 45, "random_keep": 45}
    with fills.open(newline="") as stream:
        for row in csv.DictReader(stream):
            raw = row["method"] != "telea"
            rows.append(
                row
                | {"setting": row["method"] + " x=1" * (row["method"] == "hilo")}
                | {"flop_share": int(row["tokens_run"]) / 256 if raw else "", "sharpness": -1.0}
                | {"edit_lpips": float(row["lpips"]) / 2, "edit_psnr": 20.5}
                | {"ssim_dense": 0.9, "outside_equal": True, "outside_psnr": 30 if raw else ""}
                | {"ring_psnr": 25 if raw else "", "ring_ssim": 0.8 if raw else ""}
                | {"ring_lpips": 0.2 if raw else "", "step": 12, "step_photo": 6, "colour": 3}
                | {"ring_psnr_dense": around[row["method"]], "colour_photo": 6}
            )
    return _write(tmp_path / "regions.csv", rows)


@pytest.fixture
def sets(tmp_path):
    rows = [
        {
            "mask_class": "small", "method": method, "photos": 8, "fills": 16,
            "distance": worse + 0.002, "distance_low": worse, "distance_high": worse + 0.003,
            "over_dense": worse, "over_dense_low": worse, "over_dense_high": worse, **ORIGIN,
        }
        for method, worse in (("dense", 0.0), ("hilo", 0.0), ("tome", 0.01))
    ]  # fmt: skip
    return _write(tmp_path / "sets.csv", rows)


@pytest.fixture
def speeds(tmp_path):
    rows = [
        {
            "mask_class": name, "mask_share": share, "method": method, "repeat": i, "size": 512,
            "steps": 8, "tokens_full": 1024, "tokens_run": 1024 if method == "dense" else 384,
            "dit_seconds": 1.2 if method == "dense" else 0.4 + i / 100,
            "dit_speedup": 1 if method == "dense" else 3 - i / 10,
            "speedup": 1 if method == "dense" else 2, **ORIGIN,
        }
        for i in range(3) for name, share in CLASSES.items() for method in ("dense", "hilo")
    ]  # fmt: skip
    return _write(tmp_path / "speed.csv", rows)


def test_a_csv_is_known_by_its_columns(fills, speeds, tmp_path):
    assert read_rows(fills).kind == "fill"
    assert read_rows(speeds).kind == "speed"
    assert read_rows(fills).origin["commit"] == ["1234567"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no known kind"):
        read_rows(tmp_path / "other.csv")
    for damaged in (b"", b"\xff\xfe\x00", fills.read_bytes()[:1300], b'a,"b\n1'):
        (tmp_path / "damaged.csv").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.csv"):
            read_rows(tmp_path / "damaged.csv")
    wrong = fills.read_text().replace(",256,", ",many,", 1)
    (tmp_path / "damaged.csv").write_text(wrong)
    with pytest.raises(ValueError, match=r"damaged\.csv .*'tokens_full' holds what is no number"):
        read_rows(tmp_path / "damaged.csv")
    (tmp_path / "empty.csv").write_text(fills.read_text().partition("\n")[0] + "\n")
    with pytest.raises(ValueError, match="no rows"):
        read_rows(tmp_path / "empty.csv")


def test_a_small_loss_is_seen_pairwise_where_plain_intervals_overlap(fills):
    methods = groups_of(read_rows(fills).rows)["small"]
    dense, worse = methods["dense"], methods["random_keep"]
    assert figure(worse, "lpips").low < figure(dense, "lpips").high
    change = difference(worse, dense, "lpips")
    assert change.low < 0.05 < change.high
    assert verdict(change) == "worse"
    assert verdict(change, lower_is_better=False) == "better"
    assert verdict(difference(methods["hilo"], dense, "psnr")) == "none shown"


def test_seeds_of_a_photograph_are_not_several_photographs(fills, tmp_path):
    lines = fills.read_text().splitlines(keepends=True)
    twice = tmp_path / "twice.csv"
    twice.write_text("".join([*lines, *lines[1:]]))
    once, again = (groups_of(read_rows(path).rows)["small"]["hilo"] for path in (fills, twice))
    assert figure(once, "lpips") == pytest.approx(figure(again, "lpips"))


def test_costs_are_shares_of_dense(fills):
    methods = groups_of(read_rows(fills).rows)["large"]
    for kind in ("tokens", "seconds"):
        assert cost(methods["hilo"], methods["dense"], kind).mean == pytest.approx(100 / 256)
        assert cost(methods["dense"], methods["dense"], kind).mean == 1
    with pytest.raises(ValueError, match="unknown cost"):
        cost(methods["hilo"], methods["dense"], "euros")


def test_opencv_is_the_better_of_two(fills):
    methods = groups_of(read_rows(fills).rows)["small"]
    both = {"navier-stokes": methods["dense"], **methods}
    assert with_best_classical(both)[OPENCV] is both["navier-stokes"]
    assert "telea" not in with_best_classical(both)


def test_what_equals_dense_has_no_distance_to_it_in_decibels(fills):
    group = groups_of(read_rows(fills).rows)["small"]
    assert figure(group["dense"], "psnr_dense") is None
    assert figure(pd.concat([group["dense"], group["hilo"]]), "psnr_dense").mean == 40


def test_rows_are_narrowed_to_methods_and_photographs(fills, speeds):
    readings = read_rows(fills)
    few = narrowed(readings, ["hilo"], skip=3)
    assert set(few.rows["method"]) == {"hilo", "dense", "telea"}
    assert few.rows["photo"].nunique() == 5
    with pytest.raises(ValueError, match="choose from"):
        narrowed(readings, ["tome"])
    with pytest.raises(ValueError, match="skip fewer"):
        narrowed(readings, skip=8)
    with pytest.raises(ValueError, match="none to skip"):
        narrowed(read_rows(speeds), skip=1)


def test_tables_hold_what_the_rows_say(fills, speeds):
    text = tables(read_rows(speeds), {"hilo": "HiLo"})
    assert "| DiT, HiLo |" in text
    assert "| 6.00 % | 384 of 1024 | 1.20 s | 0.41 s | **2.90x** (2.80 to 3.00) |" in text
    text = tables(read_rows(fills), {"hilo": "ours"})
    assert text.count("| ours |") == 4  # two classes, two tables
    assert "| small, 6.0 % | OpenCV, the better of two | | 0.85" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| large | random_keep |")]
    assert "| worse | 0.00 (0.00 to 0.00) | 40.0 (40.0 to 40.0) | 0 of 16 |" in line
    with pytest.raises(ValueError, match="no part"):
        tables(read_rows(fills), {}, "speed")


def test_older_rows_have_the_tables_that_they_had(fills, regions):
    old, new = read_rows(fills), read_rows(regions)
    assert "regions" not in parts_of(old)
    assert "FLOPs" not in tables(old, {})
    with pytest.raises(ValueError, match="no column ring_psnr"):
        tables(old, {}, "regions")
    for part in ("quality", "paired"):
        header, *_ = tables(new, {}, part).splitlines()
        assert "SSIM" in header
        assert "gradient energy" in header
        assert "edit" in header
        assert "edit" not in tables(old, {}, part)


def test_of_an_edit_and_of_the_fill_in_it_the_edit_comes_first(regions):
    text = tables(read_rows(regions), {}, "quality")
    assert "| LPIPS of the edit | PSNR of the edit, dB | LPIPS | PSNR, dB |" in text
    (dense,) = [line for line in text.splitlines() if "| dense | 256 |" in line][:1]
    edit, decibels, fill, *_ = (cell.split()[0] for cell in dense.split("|")[5:9])
    assert float(edit) == pytest.approx(float(fill) / 2, abs=0.001)
    assert decibels == "20.5"


def test_regions_say_what_surrounds_the_mask(regions):
    lines = tables(read_rows(regions), {}, "regions").splitlines()
    (hilo,) = [line for line in lines if line.startswith("| small | hilo x=1 |")]
    assert "25.0 (25.0 to 25.0)" in hilo
    assert "| 45.0 (45.0 to 45.0) |" in hilo
    assert hilo.endswith("| 16 of 16 | 2.00x | 0.50x |")
    (dense,) = [line for line in lines if line.startswith("| small | dense |")]
    assert "168" not in dense  # what is equal has no distance in dB
    (telea,) = [line for line in lines if line.startswith("| small | telea |")]
    assert telea.startswith("| small | telea | | | | | | 16 of 16 |")
    text = tables(read_rows(regions), {}, "quality")
    assert "| dense | 256 | 100 |" in text
    assert "| 50 (50 to 50) |" in text  # an octave below the truth's


def test_sets_have_a_table_of_their_own(sets):
    text = tables(read_rows(sets), {"tome": "merged"})
    assert "| small | dense | 8 | 2.00 (0.00 to 3.00) | | |" in text
    assert text.count("worse") == 1
    sets.write_text(sets.read_text().replace(",8,16,", ",7,14,"))
    assert tables(read_rows(sets), {}).count("| too few to tell |") == 2
    assert (
        "| small | merged | 8 | 12.00 (10.00 to 13.00) | 10.00 (10.00 to 10.00) | worse |" in text
    )


def test_labels_are_label_colon_method():
    assert labels_from(["ours: hilo bucket=16"]) == {"hilo bucket=16": "ours"}
    with pytest.raises(ValueError, match="LABEL: METHOD"):
        labels_from(["ours=hilo"])


def test_a_document_is_made_anew_and_then_stays(fills):
    start = f'<!-- hilo bench table {fills.name} --only hilo --label "our own: hilo" -->'
    before = f"# A\n\n{start}\n| old |\n<!-- end -->\n\nthe rest\n"
    assert marked(before) == [(start[5:-4], "| old |\n")]
    make = lambda command: printed(command, fills.parent)  # noqa: E731
    after = refreshed(before, make)
    assert after.startswith(f"# A\n\n{start}\n| mask | method | tokens of 256 |")
    assert after.endswith("|\n<!-- end -->\n\nthe rest\n")
    assert "old" not in after
    assert refreshed(after, make) == after
    with pytest.raises(ValueError, match="hilo bench table"):
        printed(f"hilo bench table {fills.name} --nonsense", fills.parent)
    with pytest.raises(ValueError, match="choose from"):
        printed("python -m benchmarks.tables nonsense")


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.opened, self.sources, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.opened.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_report_shows_pictures_regions_and_sets(regions, sets, tmp_path):
    pytest.importorskip("matplotlib")
    Image.new("RGB", (8, 8)).save(tmp_path / "sheet.jpg")
    report([regions, sets], tmp_path / "r.html", None, [tmp_path / "sheet.jpg"])
    page = _Page()
    page.feed((tmp_path / "r.html").read_text())
    assert page.opened == []
    first, *plots = page.sources
    assert first.startswith("data:image/jpeg;base64,")
    assert len(plots) == 3  # tokens, FLOPs, seconds
    for said in ("Regions", "raw, outside", "Sets of fills", "thousandths"):
        assert said in page.text
    (tmp_path / "sheet.jpg").write_text("no picture")
    with pytest.raises(OSError, match=r"sheet\.jpg"):
        report([sets], tmp_path / "r.html", None, [tmp_path / "sheet.jpg"])


def test_the_report_is_one_file_with_wins_and_losses(fills, speeds, tmp_path):
    pytest.importorskip("matplotlib")
    report([fills, speeds], tmp_path / "out" / "r.html", ["ours: hilo"])
    html = (tmp_path / "out" / "r.html").read_text()
    page = _Page()
    page.feed(html)
    assert page.opened == []
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not re.search(r"(src|href)=.http", html)
    for said in ("hilo bench fill <photos>", "a CPU", "1234567", "worse", "none shown", "ssim"):
        assert said in page.text
    report([fills, speeds], tmp_path / "again.html", ["ours: hilo"])
    assert (tmp_path / "again.html").read_text() == html


@pytest.mark.parametrize("cost", ["tokens", "seconds"])
def test_a_plot_is_written_for_either_kind_of_rows(fills, speeds, tmp_path, cost):
    pytest.importorskip("matplotlib")
    for rows in (fills, speeds):
        plot(rows, tmp_path / "p.png", cost, None, 0, None)
        assert (tmp_path / "p.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="name a file"):
        plot(fills, tmp_path / "p.txt", cost, None, 0, None)


@pytest.fixture
def hard(fills, tmp_path):
    """The same, with downsampling that solves the first three photographs under small masks."""
    with fills.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in [row for row in rows if row["method"] == "dense"]:
        solved = row["mask_class"] == "small" and int(row["photo"][0]) < 3
        worse = 0.001 if solved else 0.1
        lpips = float(row["lpips"]) + worse
        rows.append(row | {"method": "downsample", "lpips": lpips, "tokens_run": 64})
    return _write(tmp_path / "hard.csv", rows)


def test_downsampling_divides_the_photographs(hard, fills):
    parts = divided(read_rows(hard))
    photos = {
        mask_class: [set(part["hilo"]["photo"]) if part else set() for part in both.rows.values()]
        for mask_class, both in parts.items()
    }
    assert photos["small"][0] == {"0.jpg", "1.jpg", "2.jpg"}
    assert photos["small"][0] | photos["small"][1] == {f"{i}.jpg" for i in range(8)}
    assert not photos["small"][0] & photos["small"][1]
    assert not photos["large"][0]
    assert len(photos["large"][1]) == 8
    everything = divided(read_rows(hard), margin=0.2)
    assert not any(both.rows["open"] for both in everything.values())
    with pytest.raises(ValueError, match="--method downsample"):
        divided(read_rows(fills))
    with pytest.raises(ValueError, match="margin"):
        divided(read_rows(hard), -1)


def test_every_method_is_reported_on_each_part(hard, speeds, capsys):
    difficulty(hard, 0.01, None, 0, ["ours: hilo"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("| ours |" in line for line in lines) == 3  # no large mask is solved
    assert "| small | downsampling solves: 3 |" in lines[2]
    assert sum(line.endswith("| divides |") for line in lines) == 3
    with pytest.raises(ValueError, match="those of fills"):
        difficulty(speeds, 0.01, None, 0, None)


def test_all_marks_lie_within_their_panels(fills):
    """Panels share an axis, and methods cost more under some masks than under others."""
    pytest.importorskip("matplotlib")
    with fills.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if row["mask_class"] == "large" and row["method"] == "hilo":
            row["tokens_run"] = 240
    picture = plot_quality(read_rows(_write(fills, rows)), {})
    marks = 0
    for axis in picture.axes:
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        assert left == 0
        for container in axis.containers:
            x, y = (float(values[0]) for values in container.lines[0].get_data())
            assert left <= x <= right
            assert low <= y <= high
            marks += 1
    assert marks == 2 * 2 * 2  # classes, rows, methods
