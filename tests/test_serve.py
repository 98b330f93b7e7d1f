"""The service: what clients of the images API send, and what comes back."""

import base64
import io
import json
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import requests
from serving import BOX, QUICK, SIZE, as_file, hole, inside, photo, served, thread_workers, until
from toys import PROFILE, exif

from hilotoken.serve.routes import Limits
from hilotoken.serve.service import ServiceOptions, create_app

LIMITS = Limits(file_bytes=2_000_000, pixels=300_000)
MASK = as_file(hole())
PHOTO = as_file(photo())


@pytest.fixture(scope="module")
def app():
    return create_app(thread_workers(), ServiceOptions(depth=3, limits=LIMITS))


@pytest.fixture(scope="module")
def address(app):
    with served(app) as address:
        yield address


@pytest.fixture
def post(address):
    """A multipart request with quick options; `image` and `mask` may be replaced."""

    def send(image: bytes = PHOTO, mask: bytes = MASK, headers=None, **fields):
        files = {"image": ("a.png", image), "mask": ("b.png", mask)}
        data = {k: v for k, v in (QUICK | fields).items() if v is not None}
        url = f"{address}/v1/images/edits"
        return requests.post(url, data=data, files=files, headers=headers, timeout=60)

    return send


def pictures(answer: requests.Response) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [opened(entry["b64_json"]) for entry in answer.json()["data"]]


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def refused(answer: requests.Response, status: int, param: str | None = None) -> str:
    """The message of an error in the API's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param:
        assert error["param"] == param, error
    return error["message"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("output", ["png", "webp"])
def test_nothing_outside_the_mask_changes(post, kind, output):
    sent = as_file(photo(), kind)
    before = np.asarray(Image.open(io.BytesIO(sent)))
    [after] = pictures(post(sent, output_format=output))
    changed = (before != after).any(-1)
    assert not changed[~inside()].any()
    assert changed[inside()].mean() > 0.5


def test_a_turned_photo_with_profile_and_exif_comes_back_whole(post):
    stored = photo()
    sent = as_file(stored, "JPEG", exif=exif(6), icc_profile=PROFILE)
    upright = (SIZE[1], SIZE[0])
    box = (20, 30, 60, 90)
    answer = post(sent, as_file(hole(box, upright)))
    before = np.rot90(np.asarray(Image.open(io.BytesIO(sent))), -1)
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    after = Image.open(io.BytesIO(file))
    assert after.info["icc_profile"] == PROFILE
    assert after.getexif()[0x0112] == 6
    changed = (before != np.rot90(np.asarray(after), -1)).any(-1)
    kept = np.asarray(hole(box, upright))[..., 3] > 0
    assert not changed[kept].any()
    assert changed[~kept].any()


def test_pictures_differ_by_seed_and_a_seed_repeats(post):
    first, second = pictures(post(n=2, seed=5))
    [again] = pictures(post(seed=6))
    assert (first != second).any()
    apart = np.abs(second.astype(int) - again)
    assert apart.max() <= 1  # made beside another, a value that lies between two may round up
    assert (apart > 0).mean() < 1e-3
    for picture in (first, second, again):
        assert not (picture != np.asarray(photo())).any(-1)[~inside()].any()


def test_a_mask_in_luminance_is_read_when_asked(post):
    white = as_file(Image.fromarray(inside().astype(np.uint8) * 255))
    assert "mask_mode=white" in refused(post(mask=white), 400, "mask")
    [after] = pictures(post(mask=white, mask_mode="white"))
    [other] = pictures(post())
    assert (after == other).all()


def test_json_is_multipart_said_otherwise(address, post):
    def link(data: bytes) -> dict[str, str]:
        return {"image_url": "data:image/png;base64," + base64.b64encode(data).decode()}

    body = {"images": [link(PHOTO)], "mask": link(MASK), "prompt": ""} | QUICK
    answer = requests.post(f"{address}/v1/images/edits", json=body, timeout=60)
    assert (pictures(answer)[0] == pictures(post())[0]).all()
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "data:image/png;base64,!"):
        answer = requests.post(
            f"{address}/v1/images/edits", json=body | {"mask": {"image_url": url}}, timeout=60
        )
        refused(answer, 400, "mask")


def test_lossy_formats_and_their_quality(post):
    sizes = []
    for quality in (20, 90):
        answer = post(output_format="jpeg", output_compression=quality)
        file = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(file)).format == "JPEG"
        sizes.append(len(file))
    assert sizes[0] < sizes[1]
    refused(post(output_compression=50), 400, "output_compression")


BAD_FIELDS = [
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": "two"}, "n"),
    ({"size": "1024x1024"}, "size"),
    ({"steps": 0}, "steps"),
    ({"steps": 101}, "steps"),
    ({"method": "nonsense"}, "method"),
    ({"method": "hilo detail=7"}, "method"),
    ({"method": "   "}, "method"),
    ({"mask_mode": "red"}, "mask_mode"),
    ({"working_size": 64}, "working_size"),
    ({"seed": -1}, "seed"),
    ({"response_format": "url"}, "response_format"),
    ({"background": "transparent"}, "background"),
    ({"prompt": "a dog"}, "prompt"),
    ({"label": "unicorn"}, "label"),
    ({"partial_images": 2}, "partial_images"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=str)
def test_a_field_that_does_not_fit_is_named(post, fields, param):
    refused(post(**fields), 400, param)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WEBP_BOMB = (
    b"RIFF" + (22).to_bytes(4, "little") + b"WEBPVP8X" + (10).to_bytes(4, "little")
    + b"\x10\0\0\0" + (16382).to_bytes(3, "little") * 2
)  # fmt: skip
BAD_PICTURES = [
    ("image", b"", 400),
    ("image", b"no picture", 400),
    ("image", PHOTO[:200], 400),
    ("image", PHOTO[: len(PHOTO) // 2], 400),
    ("image", as_file(photo(), "TIFF"), 400),
    ("image", as_file(photo(), "GIF"), 400),
    ("image", png_header(60_000, 60_000), 413),
    ("image", WEBP_BOMB, 413),
    ("image", b"\x89PNG\r\n\x1a\n" + bytes(2_000_001), 413),
    ("mask", as_file(hole(size=(140, 170))), 400),
    ("mask", as_file(hole((0, 0, 0, 0))), 400),
    ("mask", png_header(170, 150), 400),
    ("mask", b"GIF89a", 400),
]


@pytest.mark.parametrize(("param", "data", "status"), BAD_PICTURES, ids=range(len(BAD_PICTURES)))
def test_a_picture_that_does_not_fit_is_named(post, param, data, status):
    message = refused(post(**{param: data}), status, param)
    assert "/tmp" not in message


def test_bodies_that_are_none(address):
    url = f"{address}/v1/images/edits"
    refused(requests.post(url, data=b"{", headers={"content-type": "application/json"}), 400)
    refused(requests.post(url, data=b"x", headers={"content-type": "text/plain"}), 415)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refused(requests.post(url, data=b"--x\r\nnothing", headers=broken), 400)
    refused(requests.post(url, files={"image": ("a", PHOTO)}), 400, "mask")
    two = [("image[]", ("a", PHOTO)), ("image[]", ("b", PHOTO)), ("mask", ("c", MASK))]
    refused(requests.post(url, files=two), 400, "image")
    refused(requests.post(url, data=b"x" * (LIMITS.body_bytes + 1)), 413)
    refused(requests.get(f"{address}/nothing"), 404)
    refused(requests.get(url), 405)


def test_a_body_without_a_length_is_counted(address):
    def endless():
        for _ in range(LIMITS.body_bytes // 100_000 + 2):
            yield bytes(100_000)

    headers = {"content-type": "application/json"}
    try:
        answer = requests.post(f"{address}/v1/images/edits", data=endless(), headers=headers)
    except requests.ConnectionError:
        return  # cut off while it still sent
    refused(answer, 413)


def test_a_stream_shows_the_picture_as_it_becomes(address):
    fields = QUICK | {"steps": 4, "stream": "true", "partial_images": 2, "prompt": ""}
    files = {"image": PHOTO, "mask": MASK}
    answer = requests.post(f"{address}/v1/images/edits", data=fields, files=files, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    assert [event["type"].split(".")[1] for event in events] == [
        "partial_image", "partial_image", "completed",
    ]  # fmt: skip
    before = np.asarray(photo())
    for event in events:
        assert not (opened(event["b64_json"]) != before).any(-1)[~inside()].any()
    assert events[-1]["usage"]["output_tokens"] > 0


def test_pictures_made_together_are_each_shown(address):
    fields = QUICK | {"steps": 4, "stream": "true", "partial_images": 1, "n": 3, "prompt": ""}
    files = {"image": PHOTO, "mask": MASK}
    answer = requests.post(f"{address}/v1/images/edits", data=fields, files=files, timeout=60)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    kinds = [event["type"].split(".")[1] for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"] * 3  # all in one call of the model
    assert len({event["b64_json"] for event in events}) == 6


def test_an_error_in_a_stream_is_its_last_event(address):
    fields = QUICK | {"stream": "true", "label": "unicorn"}
    files = {"image": PHOTO, "mask": MASK}
    answer = requests.post(f"{address}/v1/images/edits", data=fields, files=files, timeout=60)
    event = json.loads(answer.text.splitlines()[1][6:])
    assert event["type"] == "error"
    assert event["error"]["param"] == "label"


def slow(address, seconds: float, **fields):
    """A client that goes away after that many seconds."""
    data = QUICK | {"steps": 100} | fields
    files = {"image": PHOTO, "mask": MASK}
    with pytest.raises(requests.exceptions.RequestException):
        requests.post(f"{address}/v1/images/edits", data=data, files=files, timeout=seconds)


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["whole", "stream"])
def test_an_edit_stops_when_its_client_goes(app, address, post, fields):
    jobs = app.state.jobs
    slow(address, 0.5, n=10, **fields)
    until(lambda: not jobs.running and not jobs.waiting, 15)
    [later] = pictures(post())
    [again] = pictures(post())
    assert (later == again).all()


def test_a_full_queue_says_when_to_come_again(app, address, post):
    jobs = app.state.jobs
    many = [
        threading.Thread(target=slow, args=(address, 4.0), kwargs={"n": 10, "seed": i})
        for i in range(4)
    ]
    for thread in many:
        thread.start()
    until(lambda: jobs.waiting == 3)
    answer = post()
    refused(answer, 429)
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-should-retry"] == "true"
    assert requests.get(f"{address}/readyz").status_code == 503
    for thread in many:
        thread.join()
    until(lambda: not jobs.running and not jobs.waiting, 30)
    assert requests.get(f"{address}/readyz").status_code == 200


def test_the_same_job_id_is_the_same_job(app, post):
    key = {"Idempotency-Key": "one"}
    ended = lambda: app.state.jobs.watch.__self__.jobs.labels("done")._value.get()  # noqa: E731
    first = post(headers=key)
    count = ended()
    again = post(headers=key)
    assert first.json()["data"] == again.json()["data"]
    assert ended() == count
    refused(post(headers=key, seed=3), 400, "Idempotency-Key")
    post(headers={"Idempotency-Key": "two"})
    assert ended() == count + 1


def test_models_health_and_figures(address, post):
    models = requests.get(f"{address}/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["embedded"]
    assert requests.get(f"{address}/v1/models/embedded").json()["object"] == "model"
    refused(requests.get(f"{address}/v1/models/other"), 404, "model")
    refused(post(model="other"), 404, "model")
    assert requests.get(f"{address}/healthz").json() == {"status": "ok"}
    text = requests.get(f"{address}/metrics").text
    assert 'hilo_edits_total{outcome="done"}' in text
    assert "hilo_queue_waiting 0.0" in text


def test_other_sites_cannot_use_a_visitor(address):
    refused(requests.get(f"{address}/v1/models", headers={"Origin": "http://evil.example"}), 403)
    refused(requests.get(f"{address}/v1/models", headers={"Host": "evil.example"}), 403)
    assert requests.get(f"{address}/v1/models", headers={"Origin": address}).ok


def test_api_keys_and_the_time_limit():
    options = ServiceOptions(keys=("first", "second"), limit=1.0, limits=LIMITS)
    with served(create_app(thread_workers(), options)) as address:
        url = f"{address}/v1/models"
        for wrong in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Bearer "}):
            refused(requests.get(url, headers=wrong), 401)
        refused(requests.get(f"{address}/metrics"), 401)
        assert requests.get(f"{address}/healthz").ok
        key = {"Authorization": "Bearer second"}
        assert requests.get(url, headers=key).ok
        started = time.monotonic()
        answer = requests.post(
            f"{address}/v1/images/edits",
            data=QUICK | {"n": 10, "steps": 100},
            files={"image": PHOTO, "mask": MASK},
            headers=key,
        )
        refused(answer, 408)
        assert time.monotonic() - started < 10
        assert answer.headers["x-should-retry"] == "false"


def test_the_log_holds_no_prompt(post, caplog):
    with caplog.at_level("INFO"):
        post(prompt="a secret wish")
    assert "/v1/images/edits 400" in caplog.text
    assert "secret" not in caplog.text
    assert "a.png" not in caplog.text


def test_the_description_of_the_api_is_whole(address):
    found = requests.get(f"{address}/openapi.json").json()
    body = found["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert "mask_mode" in body["multipart/form-data"]["schema"]["properties"]
    page = requests.get(f"{address}/docs").text
    assert "<code>mask_mode</code>" in page
    assert "http" not in page.replace("HTTP", "")


def test_the_box_is_where_it_was_asked_for(post):
    other = (5, 100, 40, 140)
    [after] = pictures(post(mask=as_file(hole(other))))
    changed = (after != np.asarray(photo())).any(-1)
    assert changed[inside(other)].any()
    assert not changed[inside(BOX)].any()
