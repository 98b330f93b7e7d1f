"""The page, in a real browser: strokes to the pixel, an edit to its end, nothing lost."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra `app`")

import requests
from browsing import browser, downloads, drag, need_browser, touch
from serving import as_file, served, thread_workers, until
from tiny import make_photo

from hilotoken.app.routes import OPEN_PATHS, STATIC, page_routes
from hilotoken.photo import load_photo
from hilotoken.serve.files import read_mask
from hilotoken.serve.jobs import QueueFull
from hilotoken.serve.service import ServiceOptions, create_app

HEIGHT, WIDTH = 200, 300


@pytest.fixture(scope="module")
def app():
    return create_app(thread_workers(), None, page_routes, OPEN_PATHS)


@pytest.fixture(scope="module")
def address(app):
    need_browser()
    with served(app) as address:
        yield address


@pytest.fixture(scope="module")
def window(address):
    with browser() as driver:
        yield driver


@pytest.fixture
def page(window, address):
    """The page as one finds it at first."""
    return fresh(window, address)


def fresh(window, address):
    window.get(address)
    until(lambda: window.execute_script("return !!globalThis.hilo"))
    window.execute_async_script(
        "const done = arguments[0]; hilo.desk.file = null; localStorage.clear();"
        "const gone = indexedDB.deleteDatabase('hilotoken');"
        "gone.onsuccess = gone.onerror = gone.onblocked = () => done()"
    )
    window.get(address)
    until(lambda: window.execute_script("return 'ready' in document.body.dataset"))
    return window


@pytest.fixture
def opened(page, tmp_path):
    """The page with a photo of 300 by 200."""
    return choose(page, make_photo(HEIGHT, WIDTH), tmp_path)


def choose(page, picture: Image.Image, folder, name: str = "photo.png"):
    picture.save(folder / name)
    page.find_element("id", "file").send_keys(str(folder / name))
    size = f"{picture.width} × {picture.height}"
    until(lambda: size in page.find_element("id", "name").text)
    return page


@pytest.fixture
def sent(app, monkeypatch):
    """What the page asks for; it is told that the queue is full."""
    tasks = []

    def refuse(task, key=None):
        tasks.append(task)
        raise QueueFull(7)

    monkeypatch.setattr(app.state.jobs, "submit", refuse)
    return tasks


def go(page):
    page.find_element("id", "go").click()


def sent_mask(page, sent, tmp_path) -> np.ndarray:
    """The mask that the service is asked to edit under, as it reads it."""
    count = len(sent)
    # A tap right after fingers painted may be taken for a part of their gesture.
    page.execute_script("document.getElementById('go').click()")
    until(lambda: len(sent) > count)
    until(lambda: not running(page))
    path = tmp_path / "sent"
    path.write_bytes(sent[-1].photo)
    return read_mask(sent[-1], load_photo(path))


def running(page) -> bool:
    return page.execute_script("return !!hilo.desk.running")


def finished(page) -> None:
    until(lambda: not running(page), 120)
    assert not page.find_element("id", "error").text


def bits(page) -> np.ndarray:
    width, height, values = page.execute_script(
        "const m = hilo.stage.mask; return [m.width, m.height, Array.from(m.bits).join('')]"
    )
    return (np.frombuffer(values.encode(), np.uint8) == ord("1")).reshape(height, width)


def keys(page, *pressed: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(page)
    for key in pressed:
        if "+" in key and len(key) > 1:
            hold, _, key = key.partition("+")
            chain.key_down(_key(hold)).send_keys(_key(key)).key_up(_key(hold))
        else:
            chain.send_keys(_key(key))
    chain.perform()


def _key(name: str) -> str:
    from selenium.webdriver.common.keys import Keys

    return name if len(name) == 1 else getattr(Keys, name.upper())


def place(page, x: float, y: float) -> tuple[int, int]:
    """Where on the screen, in whole pixels, about this pixel of the photo is."""
    left, top, scale = page.execute_script(
        "const s = hilo.stage, b = s.canvas.getBoundingClientRect();"
        "return [b.left + s.x, b.top + s.y, s.scale]"
    )
    return round(left + x * scale), round(top + y * scale)


def at(page, point: tuple[int, int]) -> np.ndarray:
    """The pixel of the photo, with its fraction, under a point of the screen."""
    left, top, x, y, scale = page.execute_script(
        "const s = hilo.stage, b = s.canvas.getBoundingClientRect();"
        "return [b.left, b.top, s.x, s.y, s.scale]"
    )
    return np.array([(point[0] - left - x) / scale, (point[1] - top - y) / scale])


def stroke(start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Pixels whose centre is within the radius of the line."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    (dx, dy), (px, py) = end - start, (x - start[0], y - start[1])
    t = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    return (px - t * dx) ** 2 + (py - t * dy) ** 2 <= radius**2


def tool(page, name: str) -> None:
    page.find_element("css selector", f"[data-tool={name}]").click()


def test_strokes_become_the_mask_to_the_pixel(opened, sent, tmp_path):
    radius = opened.execute_script("return hilo.stage.radius")
    line = [place(opened, 60, 50), place(opened, 200, 120), place(opened, 220, 40)]
    drag(opened, *line)
    ends = [at(opened, point) for point in line]
    expected = stroke(ends[0], ends[1], radius) | stroke(ends[1], ends[2], radius)
    assert (bits(opened) == expected).all()
    rub = [place(opened, 130, 20), place(opened, 130, 180)]
    tool(opened, "eraser")
    drag(opened, *rub)
    expected &= ~stroke(at(opened, rub[0]), at(opened, rub[1]), radius)
    tool(opened, "brush")
    drag(opened, *rub[::-1], alt=True)  # which erases too
    assert (sent_mask(opened, sent, tmp_path) == expected).all()


def test_rectangle_and_lasso_to_the_pixel(opened, sent, tmp_path):
    corners = [place(opened, 20, 30), place(opened, 90, 80)]
    tool(opened, "rectangle")
    drag(opened, *corners)
    (left, top), (right, bottom) = (np.floor(at(opened, c) + 0.5).astype(int) for c in corners)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    assert (bits(opened) == expected).all()
    points = [place(opened, *p) for p in ((150, 40), (280, 60), (200, 110), (260, 180), (140, 150))]
    tool(opened, "lasso")
    drag(opened, *points)
    expected |= even_odd([at(opened, point) for point in points])
    assert (sent_mask(opened, sent, tmp_path) == expected).all()


def even_odd(points: list[np.ndarray]) -> np.ndarray:
    """Pixels whose centre an odd number of edges lies left of."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            crossed = (y0 <= y) != (y1 <= y)
            inside ^= crossed & (x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x)
    return inside


def test_keys_undo_redo_invert_clear_grow_and_size(opened):
    drag(opened, place(opened, 100, 100), place(opened, 120, 100))
    first = bits(opened)
    keys(opened, "g")
    grown = bits(opened)
    padded = np.pad(first, 1)
    around = [padded[y : y + HEIGHT, x : x + WIDTH] for y in range(3) for x in range(3)]
    assert (grown == np.any(around, 0)).all()
    keys(opened, "i")
    assert (bits(opened) == ~grown).all()
    keys(opened, "delete")
    assert not bits(opened).any()
    keys(opened, *["control+z"] * 3)
    assert (bits(opened) == first).all()
    keys(opened, "control+y", "control+y")
    assert (bits(opened) == ~grown).all()
    radius = opened.execute_script("return hilo.stage.radius")
    keys(opened, "]", "]", "[")
    assert opened.execute_script("return hilo.stage.radius") == pytest.approx(radius * 1.2)


def test_the_keyboard_alone_paints(opened):
    opened.execute_script("document.getElementById('stage').focus()")
    keys(opened, "arrow_right", "enter", "arrow_right", "arrow_right", "arrow_down", "enter")
    keys(opened, "arrow_down", "arrow_down")
    radius = opened.execute_script("return hilo.stage.radius")
    steps = [np.array([150.0, 100]) + radius / 2 * np.array(s) for s in ((1, 0), (3, 0), (3, 1))]
    expected = stroke(steps[0], steps[1], radius) | stroke(steps[1], steps[2], radius)
    assert (bits(opened) == expected).all()


def test_a_mask_is_saved_and_loaded(opened, tmp_path):
    downloads(opened, tmp_path)
    drag(opened, place(opened, 60, 50), place(opened, 90, 90))
    painted = bits(opened)
    opened.find_element("id", "mask-save").click()
    path = tmp_path / "photo_mask.png"
    until(lambda: path.is_file() and path.stat().st_size > 0)
    assert (np.asarray(Image.open(path).convert("L")) == painted * 255).all()
    keys(opened, "delete")
    opened.find_element("id", "mask-file").send_keys(str(path))
    until(lambda: bits(opened).any())
    assert (bits(opened) == painted).all()


def test_zoom_and_pan_leave_the_pen_where_it_points(opened):
    drag(opened, place(opened, 150, 100))
    tool(opened, "hand")
    start = place(opened, 150, 100)
    drag(opened, start, (start[0] + 90, start[1] - 40))
    assert np.allclose(at(opened, (start[0] + 90, start[1] - 40)), (150, 100), atol=1)
    keys(opened, "+", "+")
    tool(opened, "brush")
    keys(opened, "delete")
    point = place(opened, 150, 100)
    drag(opened, point)
    radius = opened.execute_script("return hilo.stage.radius")
    assert (bits(opened) == stroke(at(opened, point), at(opened, point), radius)).all()


def test_space_moves_and_tab_shows_the_photo_as_it_was(opened):
    stage = opened.find_element("id", "stage")
    opened.execute_script("arguments[0].focus()", stage)
    key = {"type": "rawKeyDown", "key": " ", "code": "Space", "windowsVirtualKeyCode": 32}
    opened.execute_cdp_cmd("Input.dispatchKeyEvent", key)
    before = opened.execute_script("return hilo.stage.x")
    start = place(opened, 150, 100)
    drag(opened, start, (start[0] + 50, start[1]))
    opened.execute_cdp_cmd("Input.dispatchKeyEvent", key | {"type": "keyUp"})
    assert opened.execute_script("return hilo.stage.x") == pytest.approx(before + 50)
    assert not bits(opened).any()
    tab = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    opened.execute_cdp_cmd("Input.dispatchKeyEvent", tab | {"type": "rawKeyDown"})
    assert opened.execute_script("return hilo.stage.peeking && !hilo.stage.showMask")
    opened.execute_cdp_cmd("Input.dispatchKeyEvent", tab | {"type": "keyUp"})
    assert opened.execute_script("return !hilo.stage.peeking && hilo.stage.showMask")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page, way):
    page.execute_async_script(
        "const [way, done] = arguments;"
        "fetch('/static/hikers.jpg').then(answer => answer.blob()).then(blob => {"
        "  const data = new DataTransfer();"
        "  data.items.add(new File([blob], 'came.jpg', {type: 'image/jpeg'}));"
        "  dispatchEvent(way === 'drop' ? new DragEvent(way, {dataTransfer: data})"
        "    : new ClipboardEvent(way, {clipboardData: data}));"
        "  done();"
        "})",
        way,
    )
    until(lambda: "came.jpg · 1600 × 1067" in page.find_element("id", "name").text)


def test_an_error_loses_nothing(opened, sent, tmp_path):
    drag(opened, place(opened, 60, 50), place(opened, 90, 90))
    painted = bits(opened)
    assert (sent_mask(opened, sent, tmp_path) == painted).all()
    assert "queue is full" in opened.find_element("id", "error").text
    assert (bits(opened) == painted).all()
    assert opened.find_element("id", "go").is_enabled()


def test_two_clicks_are_one_edit(opened, sent):
    drag(opened, place(opened, 60, 50), place(opened, 90, 90))
    opened.execute_script("const go = document.getElementById('go'); go.click(); go.click()")
    until(lambda: opened.find_element("id", "error").text)
    until(lambda: not running(opened))
    assert len(sent) == 1


def quick(page, preset: str = "fast", count: int = 1, size: int = 256) -> None:
    """Options of an edit that takes the small model little time."""
    page.find_element("css selector", f"[name=preset][value={preset}]").click()
    page.find_element("css selector", f"[data-count='{count}']").click()
    page.execute_script(f"document.getElementById('working').value = '{size}'")


def test_the_hikers_from_the_first_click_to_the_saved_file(page, tmp_path):
    downloads(page, tmp_path)
    page.find_element("id", "example").click()
    until(lambda: page.find_element("id", "go").is_enabled())
    mask = bits(page)
    quick(page, count=2)
    go(page)
    finished(page)
    assert "tokens ran" in page.find_element("id", "figures").text
    assert len(page.find_elements("css selector", "#thumbs button")) == 2
    page.find_element("id", "save").click()
    path = tmp_path / "hikers_edited.png"
    until(lambda: path.is_file() and path.stat().st_size > 0)
    before, after = load_photo(STATIC / "hikers.jpg"), load_photo(path)
    changed = (before.pixels != after.pixels).any(-1)
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.9

    page.find_element("id", "dense").click()
    finished(page)
    assert "Dense took" in page.find_element("id", "figures").text
    assert page.find_element("id", "comparebar").is_displayed()
    page.find_element("id", "tokens").click()
    assert page.execute_script("return hilo.stage.plans[0].edit.length") > 0

    page.refresh()
    until(lambda: page.execute_script("return hilo.desk.layers.length") == 1)
    assert len(page.find_elements("css selector", "#thumbs button")) == 2
    page.find_element("css selector", "[aria-label='Bring back the mask of edit 1']").click()
    assert (bits(page) == mask).all()
    page.find_element("css selector", "[aria-label='Remove edit 1']").click()
    assert not page.execute_script("return hilo.desk.layers.length")


def test_a_second_edit_builds_on_the_first(opened, app, tmp_path):
    downloads(opened, tmp_path)
    quick(opened)
    masks = []
    for x in (60, 200):
        drag(opened, place(opened, x, 60), place(opened, x + 20, 100))
        masks.append(bits(opened))
        go(opened)
        finished(opened)
        until(lambda: not running(opened))
    opened.find_element("id", "save").click()
    path = tmp_path / "photo_edited.png"
    until(lambda: path.is_file() and path.stat().st_size > 0)
    changed = (np.asarray(Image.open(path)) != np.asarray(make_photo(HEIGHT, WIDTH))).any(-1)
    assert not changed[~(masks[0] | masks[1])].any()
    assert changed[masks[0]].any()
    assert changed[masks[1]].any()


def test_cancel_and_reload_keep_the_mask(opened, app):
    drag(opened, place(opened, 60, 50), place(opened, 90, 90))
    painted = bits(opened)
    quick(opened, "dense", count=3, size=1024)
    go(opened)
    until(lambda: app.state.jobs.running)
    opened.find_element("id", "cancel").click()
    until(lambda: not running(opened))
    assert (bits(opened) == painted).all()
    until(lambda: not app.state.jobs.running, 60)
    until(lambda: opened.execute_script("return !!document.body.dataset.kept"))
    opened.refresh()
    until(lambda: opened.execute_script("return !!hilo.stage.mask"))
    until(lambda: bits(opened).any())
    assert (bits(opened) == painted).all()


def test_a_photo_of_twelve_megapixels_is_edited_at_full_size(page, sent, tmp_path):
    large = Image.fromarray(np.zeros((3000, 4000, 3), np.uint8) + 90)
    choose(page, large, tmp_path, "large.jpg")
    started = page.execute_script("return performance.now()")
    drag(page, place(page, 1000, 1000), place(page, 1500, 1200))
    assert page.execute_script("return performance.now()") - started < 3000
    mask = sent_mask(page, sent, tmp_path)
    assert mask.shape == (3000, 4000)
    assert mask[1000, 1000]
    assert mask[1100, 1250]
    assert not mask[1500, 1250]


def test_a_phone(address, app, sent, tmp_path):
    with browser(390, 844, phone=True) as driver:
        page = choose(fresh(driver, address), make_photo(HEIGHT, WIDTH), tmp_path)
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        for name in ("go", "save", "stage", "zoom-in"):
            assert page.find_element("id", name).is_displayed()
        start, end = place(page, 80, 80), place(page, 150, 100)
        touch(page, [start], [end])
        radius = page.execute_script("return hilo.stage.radius")
        expected = stroke(at(page, start), at(page, end), radius)
        assert (sent_mask(page, sent, tmp_path) == expected).all()
        scale = page.execute_script("return hilo.stage.scale")
        x, y = place(page, 150, 100)
        touch(page, [(x - 20, y), (x + 20, y)], [(x - 60, y), (x + 60, y)])
        assert page.execute_script("return hilo.stage.scale") > 2 * scale
        assert (bits(page) == expected).all()  # two fingers do not paint


def test_everything_has_a_name_and_nothing_complains(opened):
    nameless = opened.execute_script(
        "return [...document.querySelectorAll('button, input:not([hidden]), select, textarea')]"
        ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.id)"
    )
    assert nameless == []
    complaints = [entry["message"] for entry in opened.get_log("browser")]
    assert [text for text in complaints if " 429 " not in text] == []  # which tests ask for


def test_what_is_not_the_pages_own_needs_the_key():
    options = ServiceOptions(keys=("key",))
    with served(create_app(thread_workers(), options, page_routes, OPEN_PATHS)) as address:
        for path in ("/", "/static/main.js", "/static/hikers.jpg"):
            assert requests.get(address + path).ok
        for path in ("/app/info", "/metrics", "/openapi.json", "/static/../app/info"):
            assert requests.get(address + path).status_code in (401, 404)
        assert requests.get(f"{address}/app/info", headers={"Authorization": "Bearer key"}).ok
        policy = requests.get(address).headers["content-security-policy"]
        assert "default-src 'self'" in policy


def test_the_page_loads_nothing_from_elsewhere():
    for path in STATIC.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text
            assert "https://" not in text


@pytest.mark.parametrize(
    ("options", "param"),
    [("{", "options"), ('{"preset": "x"}', "preset"), ('{"corners": [[0, 0]]}', "corners")],
)
def test_a_request_of_the_page_that_does_not_fit(address, options, param):
    picture = as_file(make_photo(HEIGHT, WIDTH))
    files = {"image": picture, "mask": picture}
    answer = requests.post(f"{address}/app/edits", data={"options": options}, files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
