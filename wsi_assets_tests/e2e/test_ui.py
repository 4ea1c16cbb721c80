"""The platform as its users see it: a real browser on real servers. Screenshots go to ``test-artifacts/``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsi_assets.orchestration.artefact import all_artefacts, level_chain, slide_artefacts

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

SLIDES = ("test_073_node_2", "tumor_001_node_1")
STORED, ADDED = "1", "20x"
SHOTS = Path(__file__).parents[2] / "test-artifacts"
PATIENCE_MS = 60_000


@pytest.fixture(scope="module", autouse=True)
def stored(platform, real_data) -> None:
    """Two slides with annotations and a level with its patches; what other stories left is taken as it is."""
    for slide_id in SLIDES:
        for folder, ending in ((platform.images, "tif"), (platform.annotations, "xml")):
            if not (folder / f"{slide_id}.{ending}").exists():
                shutil.copy(real_data / "cohort" / folder.name / f"{slide_id}.{ending}", folder)
    for slide_id in SLIDES:
        platform.wait(lambda slide_id=slide_id: _has_overlay(platform, slide_id), slide_id)
    if STORED not in platform.levels():
        platform.add_level(STORED)
    # What a lost home found in its storage has no pictures.
    if not any("mosaic" in event["metadata"] for event in platform.materializations("patch_store", STORED)):
        platform.make("level_pipeline", ["slide_index", "sampled_index", "patch_store"], STORED)


def _has_overlay(platform, slide_id: str) -> bool:
    # What a lost home found in its storage has no pictures; a new annotation makes one.
    events = platform.materializations("annotation_regions", slide_id)
    return any("overlay_file" in event["metadata"] for event in events)


@pytest.fixture(scope="module")
def page(platform) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing, and CI must have it (apt-get install chromium)")
        pytest.skip("no Chromium here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        opened = browser.new_page(viewport={"width": 1600, "height": 1000})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()


@pytest.fixture
def go(platform, page) -> Callable[[str], Page]:
    """Open a page of the UI by its path."""

    def to(path: str) -> Page:
        page.goto(platform.url + path)
        return page

    return to


def shoot(page: Page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.wait_for_timeout(700)  # what slides in or fades is in place
    page.screenshot(path=SHOTS / f"{name}.png")


def launch(page: Page, partition: str) -> None:
    """Materialize a partition of the asset that is shown, through its dialog."""
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_text("Select a partition or create one").click()
    # The list lies over the rest of the dialog until it is closed.
    search = page.get_by_placeholder("Filter partitions")
    search.fill(partition)
    named = page.get_by_text(partition, exact=True)
    page.get_by_role("menuitem").filter(has=named).first.click()
    search.press("Escape")
    search.wait_for(state="hidden")
    page.get_by_role("button", name=re.compile("^Launch")).click()


def show_picture(page: Page, entry: str, alt: str) -> None:
    """Open a picture of the metadata of the partition that is shown; it must have one."""
    row = page.get_by_role("row").filter(has=page.get_by_text(entry, exact=True))
    row.get_by_text("Show Markdown").click()
    picture = page.get_by_role("img", name=alt)
    picture.wait_for()
    assert min(picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")) > 100


def test_the_opening_graph_shows_every_asset_from_slides_to_evaluation(go):
    page = go("/asset-groups")
    places = {}
    for asset in ("slide_image", *(artefact.name for artefact in all_artefacts())):
        node = page.locator("foreignObject").get_by_text(asset, exact=True).first
        node.wait_for()
        places[asset] = node.bounding_box()["x"]
    order = [places[artefact.name] for artefact in (*slide_artefacts(), *level_chain())]
    assert [places["slide_image"], *order] == sorted([places["slide_image"], *order]), "from left to right"
    shoot(page, "ui_1_graph")


def test_sensors_can_be_seen_and_switched(go):
    page = go("/automation")
    for name in ("slide_folder", "slides_follow", "store_follows_index", "predict_new_slides"):
        page.get_by_text(name, exact=True).first.wait_for()
    shoot(page, "ui_2_automation")


def test_the_overlay_of_a_slide_opens(go):
    page = go(f"/assets/annotation_regions?view=partitions&partition={SLIDES[1]}")
    page.get_by_text("overlay_file").wait_for()
    shoot(page, "ui_3_partition")
    show_picture(page, "overlay", "tissue and annotation")
    shoot(page, "ui_4_overlay")


def test_a_magnification_is_added_in_the_dialog_and_launched(platform, go):
    page = go("/assets/slide_index?view=partitions")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_text("Add a partition").first.click()
    page.get_by_placeholder("name", exact=True).fill(ADDED)
    shoot(page, "ui_5_add_level")
    page.get_by_role("button", name="Save").click()
    platform.wait(lambda: ADDED in platform.levels(), "the partition")
    page = go("/assets/slide_index?view=partitions")
    page.get_by_role("button", name="Materialize").first.wait_for()
    launch(page, ADDED)
    platform.wait(lambda: platform.made_by("slide_index", ADDED), "its index")
    assert len(platform.made_by("slide_index", ADDED)) == 1
    page = go("/runs")
    page.get_by_text("Success").first.wait_for()
    shoot(page, "ui_5_runs")


def test_a_partition_that_is_no_level_fails_in_one_line(platform, go):
    platform.add_level("ten")
    run = platform.launch("level_pipeline", ["slide_index"], "ten")
    platform.wait(lambda: platform.status(run) == "FAILURE", "the failure")
    (why,) = filter(None, platform.failures(run))
    assert len(why.splitlines()) == 1
    page = go(f"/runs/{run}")
    page.get_by_text(why[:40]).first.wait_for()
    shoot(page, "ui_5_no_level")


def test_the_launchpad_says_what_an_empty_field_means(go):
    page = go("/assets/slide_index?view=partitions")
    page.get_by_role("button", name="Materialize").first.wait_for()
    page.get_by_role("button", name="Materialize").first.locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    page.get_by_text("Scaffold").first.wait_for()
    shoot(page, "ui_9_launchpad")


def test_a_level_shows_its_checks_its_counts_and_its_patches(go):
    page = go("/assets/slide_index?view=checks")
    for name in ("every_slide_takes_part", "annotations_fit_their_slides", "up_to_date"):
        page.get_by_text(name).first.wait_for()
    shoot(page, "ui_6_checks")
    page = go(f"/assets/sampled_index?view=partitions&partition={STORED}")
    for entry in ("counts_picture", "counts_by_slide"):
        page.get_by_text(entry).first.wait_for()
    shoot(page, "ui_7_index")
    page = go(f"/assets/patch_store?view=partitions&partition={STORED}")
    show_picture(page, "mosaic", "patches by class")
    shoot(page, "ui_8_mosaic")
