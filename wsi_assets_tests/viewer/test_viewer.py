"""The slide viewer: what its server gives and refuses, and what a person sees and does in the browser."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_assets.viewer import Heat, SlideLayers, viewer_server
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

NAME = "odd name %41 ü"
SIDE = 1024
RING = [(100.0, 100.0), (700.0, 100.0), (700.0, 600.0), (100.0, 600.0)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(host:port, level-0 pixels) of a server that shows one slide with a heatmap of 4 x 4 cells."""
    home = tmp_path_factory.mktemp("viewer")
    whole = picture(SIDE, SIDE)
    path = write_pyramid(home / f"{NAME}.tif", [whole, halved(whole, 1)], tile=256, compression=None, mpp=0.5)
    broken = home / "broken.tif"
    broken.write_bytes(b"II*\0 no slide")
    probability = np.zeros((4, 4), np.float32)
    probability[1, 2] = 0.9
    tifffile.imwrite(home / "map.tif", probability)
    heat = Heat("level 0", home / "map.tif", ((0.9, 640.0, 384.0), (0.4, 200.0, 800.0)))
    server = viewer_server(
        lambda: {NAME: path, "broken": broken},
        lambda slide_id: SlideLayers((RING,), (), 0.5, (heat,)),
        "127.0.0.1",
        0,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", whole
    server.shutdown()
    server.server_close()


def fetched(served, address: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(served[0], timeout=20)
    connection.request("GET", address)
    answer = connection.getresponse()
    return answer.status, answer.read()


QUOTED = "odd%20name%20%2541%20%C3%BC"


def test_a_tile_of_the_last_level_shows_the_slides_own_pixels(served):
    status, body = fetched(served, f"/tiles/{QUOTED}/10/1_2.jpeg")
    tile = np.asarray(Image.open(io.BytesIO(body))).astype(int)
    # 254 pixels and one of overlap on each side.
    wanted = served[1][2 * 254 - 1 : 3 * 254 + 1, 254 - 1 : 2 * 254 + 1].astype(int)
    assert (status, tile.shape) == (200, wanted.shape)
    # JPEG blurs the noise of single pixels, not the picture.
    assert np.abs(halved(tile, 3).astype(int) - halved(wanted, 3)).mean() < 2


def test_annotations_and_detections_are_in_level_0_pixels(served):
    told = json.loads(fetched(served, f"/api/{QUOTED}")[1])
    assert (told["width"], told["height"], told["mpp"]) == (SIDE, SIDE, 0.5)
    assert told["tumor"] == [[list(point) for point in RING]]
    assert told["heat"][0]["detections"][0] == [0.9, 640.0, 384.0]


def test_a_heatmap_is_transparent_where_nothing_was_predicted(served):
    pixels = np.asarray(Image.open(io.BytesIO(fetched(served, f"/heat/{QUOTED}/0")[1])))
    cell = len(pixels) // 4
    shown = pixels[cell // 2 :: cell, cell // 2 :: cell, 3] > 0
    assert np.argwhere(shown).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "address",
    [
        "/../../../../etc/passwd",
        "/slide/..%2f..%2f..%2fetc%2fpasswd",
        "/tiles/..%2fmap.tif/0/0_0.jpeg",
        "/tiles/%2fetc%2fpasswd/0/0_0.jpeg",
        f"/tiles/{QUOTED}/10/..%2f0_0.jpeg",
        f"/tiles/{QUOTED}/99/0_0.jpeg",
        f"/tiles/{QUOTED}/10/99_0.jpeg",
        f"/heat/{QUOTED}/1",
        "/server.py",
        "/nothing",
    ],
)
def test_only_slides_of_the_folder_are_served(served, address):
    assert fetched(served, address)[0] == 404


def test_a_slide_that_does_not_open_is_one_line(served):
    status, body = fetched(served, "/api/broken")
    assert status == 422
    assert b"broken.tif" in body
    assert body.count(b"\n") == 1


@pytest.mark.browser
def test_the_viewer_in_a_browser(served):
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing, and CI must have it (apt-get install chromium)")
        pytest.skip("no Chromium here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://{served[0]}/slide/{QUOTED}")
        page.wait_for_function("typeof slide === 'object' && heatItem && heatItem.getFullyLoaded()")
        assert page.locator("#title").inner_text() == NAME
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        over = (
            "() => { const c = document.getElementById('over');"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height)"
            ".data.some((v, i) => i % 4 === 3 && v > 0); }"
        )
        assert page.evaluate(over)
        page.keyboard.press("n")
        page.wait_for_timeout(1500)
        center = page.evaluate(
            "(() => { const p = viewer.world.getItemAt(0).viewportToImageCoordinates("
            "viewer.viewport.getCenter(true)); return [p.x, p.y]; })()"
        )
        assert center == pytest.approx([640, 384], abs=2)
        page.keyboard.press("p")
        assert page.locator("#detections button").nth(1).get_attribute("aria-current") == "true"
        page.keyboard.press("h")
        assert page.evaluate("heatItem.getOpacity()") == 0
        page.keyboard.press("a")
        page.wait_for_timeout(300)
        assert not page.evaluate(over), "neither annotation nor rings are drawn"
        page.locator("#slides").select_option("broken")
        page.wait_for_selector("#fault:not([hidden])")
        assert "broken.tif" in page.locator("#fault").inner_text()
        assert not faults
        browser.close()
