"""The site builds without a warning; its links lead somewhere; nothing comes from elsewhere."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx", reason="needs the extra `docs`")

from browsing import CHROMIUM, DRIVER, browser, drag
from serving import until
from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[1]
CAPTIONS = ["Tutorials", "How to", "Reference", "Explanation", "Project"]
# What a page loads by itself, as against what a reader may follow.
LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """The links, the anchors, and what is loaded, of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)
                if (tag, name) in LOADED:
                    self.loaded.append(value)


@cache
def page(path: Path) -> Page:
    return Page(path)


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def dead_links(site: Path) -> list[str]:
    dead = []
    for path in pages(site):
        for link in page(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (
                parts.fragment
                and target.suffix == ".html"
                and unquote(parts.fragment) not in page(target).anchors
            ):
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def from_elsewhere(site: Path) -> list[str]:
    """What pages, styles and scripts load from another address than the site's own."""
    found = [
        one for path in pages(site) for one in page(path).loaded if re.match(r"(?:\w+:)?//", one)
    ]
    style = re.compile(r"@import[^;]*|url\(\s*['\"]?(?:https?:)?//[^)]*")
    script = re.compile(r"(?:fetch|import|importScripts)\(\s*['\"`]https?:[^)]*")
    for kind, pattern in (("css", style), ("js", script)):
        for path in site.rglob(f"*.{kind}"):
            found += pattern.findall(path.read_text(encoding="utf-8"))
    return found


def test_the_site(tmp_path):
    """One test, so that it is built once, whichever processes share the tests."""
    site = tmp_path / "html"
    given = ["-q", "-W", "--keep-going", "-c", f"{ROOT}/docs/site", "-d", f"{tmp_path}/trees"]
    assert build_main([*given, str(ROOT), str(site)]) == 0
    assert len(pages(site)) > 30
    assert dead_links(site) == []
    assert from_elsewhere(site) == []
    text = {path.stem: path.read_text(encoding="utf-8") for path in pages(site)}
    home = (site / "docs/index.html").read_text(encoding="utf-8")
    assert re.findall(r'class="caption"[^>]*><span class="caption-text">([^<]+)', home) == CAPTIONS
    # What is made of the program itself.
    assert "hilo bench speed" in text["cli"]
    assert "/v1/images/edits" in text["http"]
    assert "tokens by which the mask is grown" in text["api"]
    assert "kept_bytes" in text["last-run"]
    assert (site / "_static/token-map-example.js").stat().st_size > 10_000
    # Search needs no server.
    assert "docs/explanation/token-map" in (site / "searchindex.js").read_text(encoding="utf-8")
    if CHROMIUM and DRIVER:
        paint_on_the_token_map(site)


def paint_on_the_token_map(site: Path) -> None:
    """From a folder, without a server: it plans at once, by presets, strokes and sliders."""
    with browser() as driver:
        driver.get((site / "docs/explanation/token-map.html").as_uri())
        root = driver.find_element("id", "token-map")
        until(lambda: root.get_attribute("data-ready") is not None)

        def run() -> int:
            return driver.execute_script("return tokenMap.state.plan.run")

        def press(preset: str) -> None:  # by script: the theme scrolls smoothly, and clicks miss
            button = root.find_element("css selector", f"button[value={preset}]")
            driver.execute_script("arguments[0].click()", button)

        paper = run()
        assert f"{paper} of 2688" in root.find_element("css selector", ".tm-result").text
        press("balanced")
        until(lambda: run() == 2688)
        assert "refresh=1" in root.find_element("css selector", ".tm-code").text
        press("paper")
        until(lambda: run() == paper)
        canvas = root.find_element("tag name", "canvas")
        driver.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", canvas)
        box = driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", canvas)
        x, y = int(box["x"]), int(box["y"])
        drag(driver, (x + 60, y + 60), (x + 200, y + 60), (x + 300, y + 120))
        until(lambda: run() > paper)
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_dead_links_and_what_comes_from_elsewhere_are_found_out(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top"><a href="a.html#top"></a><a href="b.html"></a><a href="#none"></a>'
        '<a href="https://example.org"></a><script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "a.css").write_text("p { background: url(//example.org/x.png) }")
    (tmp_path / "a.js").write_text('fetch("https://example.org/x.json")')
    assert dead_links(tmp_path) == ["a.html: b.html", "a.html: #none"]
    assert len(from_elsewhere(tmp_path)) == 3
