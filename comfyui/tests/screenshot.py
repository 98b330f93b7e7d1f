"""A picture of a workflow in ComfyUI's page, run: `screenshot.py WORKFLOW.json OUT.png`.

Needs besides the tests: Debian's chromium, and `pip install playwright comfyui-frontend-package` in
the version that this ComfyUI asks for.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from server import Server, serving

SIZE = {"width": 1800, "height": 950}
# The page's own first dialogs, off; and the whole graph in view.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
FIT = """() => {
    const canvas = window.app.canvas, nodes = window.app.graph._nodes, margin = 40;
    const left = Math.min(...nodes.map(n => n.pos[0])) - margin;
    const top = Math.min(...nodes.map(n => n.pos[1])) - margin - 30;
    const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + margin;
    const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + margin;
    const box = canvas.canvas.getBoundingClientRect(), bar = 60, menu = 120;  // of the page
    const wide = (box.width - bar) / (right - left), high = (box.height - menu) / (bottom - top);
    const scale = Math.min(wide, high);
    canvas.ds.scale = scale;
    canvas.ds.offset = [bar / scale - left, menu / scale - top];
    canvas.setDirty(true, true);
}"""


def main(workflow: str, out: str) -> None:
    package = importlib.util.find_spec("comfyui_frontend_package")
    if package is None or package.origin is None:
        raise SystemExit("no comfyui-frontend-package: install the one that ComfyUI asks for")
    graph = json.loads(Path(workflow).read_text())
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), Path(package.origin).parent / "static") as server,
        sync_playwright() as playwright,
    ):
        server.ask("/api/settings", SETTINGS)
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--use-gl=swiftshader"]
        )
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        take(page, server, graph, out)
        browser.close()


def take(page: Any, server: Server, graph: Any, out: str) -> None:
    """Open the graph, run it, and take the picture."""
    page.goto(server.url)
    page.wait_for_function("() => window.app?.graph && window.app.extensionManager")
    page.wait_for_timeout(2000)
    for close in page.locator("button:has([class*='lucide--x'])").all():  # its announcements
        if close.is_visible() and close.is_enabled():
            close.click()
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_timeout(2000)
    while any(server.ask("/queue").values()):
        page.wait_for_timeout(1000)
    page.evaluate(FIT)
    page.wait_for_timeout(3000)
    page.screenshot(path=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
