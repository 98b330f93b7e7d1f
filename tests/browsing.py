"""A real Chromium without a window, driven through its own protocol."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


def need_browser() -> None:
    """Skip where there is none."""
    pytest.importorskip("selenium", reason="needs selenium to drive a browser")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")


@contextmanager
def browser(width: int = 1280, height: int = 860, phone: bool = False) -> Iterator[Any]:
    """A browser with a fresh profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    if phone:
        metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def drag(driver: Any, *points: tuple[int, int], alt: bool = False) -> None:
    """Press at the first point, move through the others, let go at the last."""
    last = len(points) - 1
    for i, (x, y) in enumerate(points):
        kinds = ["mousePressed"] if i == 0 else ["mouseMoved"]
        for kind in kinds + ["mouseReleased"] * (i == last):
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            driver.execute_cdp_cmd(
                "Input.dispatchMouseEvent", event | {"modifiers": 1 if alt else 0}
            )


def touch(driver: Any, *moments: list[tuple[int, int]]) -> None:
    """Fingers at these places, one moment after another; then none."""
    for i, fingers in enumerate([*moments, []]):
        kind = "touchStart" if i == 0 else "touchMove" if fingers else "touchEnd"
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(fingers)]
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def downloads(driver: Any, folder: Path) -> None:
    """Put what is downloaded there."""
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
