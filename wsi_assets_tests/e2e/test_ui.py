"""The platform as its users see it: a real browser on real servers. Screenshots go to ``test-artifacts/``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsi_assets_tests.e2e.platform import Platform

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

SLIDES = ("test_073_node_1", "tumor_001_node_1")
SHOTS = Path(__file__).parents[2] / "test-artifacts"
PATIENCE_MS = 40_000


@pytest.fixture(scope="module")
def platform(real_data, tmp_path_factory) -> Iterator[Platform]:
    """Two slides with outlines, their regions made."""
    shown = Platform(tmp_path_factory.mktemp("ui"))
    for slide_id in SLIDES:
        shutil.copy(real_data / "cohort" / "images" / f"{slide_id}.tif", shown.images)
        shutil.copy(real_data / "cohort" / "annotations" / f"{slide_id}.xml", shown.annotations)
    try:
        shown.start()
        for slide_id in SLIDES:
            shown.wait(
                lambda slide_id=slide_id: shown.made_by("annotation_regions", slide_id), 120, "the regions"
            )
        yield shown
    finally:
        shown.stop()


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
    page.wait_for_timeout(1500)  # what slides in or fades is in place
    page.screenshot(path=SHOTS / f"{name}.png")


def launch(page: Page, *partitions: str) -> None:
    """Materialize partitions of the asset that is shown, through its dialog."""
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_text("Select a partition or create one").click()
    for partition in partitions:
        named = page.get_by_text(partition, exact=True)
        page.get_by_role("menuitem").filter(has=named).first.click()
    page.get_by_text("Partition selection").click()
    page.get_by_text("Partition selection").click()
    page.get_by_role("button", name=re.compile("^Launch")).click()


def test_the_graph_reads_from_slides_to_evaluation(go):
    page = go("/asset-groups")
    groups = ["1_slides", "2_index", "3_patches", "4_learning", "5_evaluation"]
    for group in groups:
        page.get_by_role("button", name=group).first.wait_for()
    shown = [button.inner_text() for button in page.get_by_role("button").all()]
    assert [text.splitlines()[0] for text in shown if text[:1].isdigit()] == groups
    shoot(page, "ui_1_graph")


def test_sensors_and_schedules_can_be_seen_and_switched(go):
    page = go("/automation")
    for name in ("slide_folder", "slides_follow", "store_follows_index", "nightly_index", "nightly_slides"):
        page.get_by_text(name, exact=True).first.wait_for()
    shoot(page, "ui_2_automation")


def test_a_slide_partition_is_materialized_by_hand(platform, go):
    before = platform.made_by("annotation_regions", SLIDES[1])
    page = go("/assets/annotation_regions?view=partitions")
    launch(page, SLIDES[1])
    platform.wait(
        lambda: platform.made_by("annotation_regions", SLIDES[1]) - before, 90, "the materialization"
    )


def test_the_overlay_opens_from_the_partition(go):
    page = go(f"/assets/annotation_regions?view=partitions&partition={SLIDES[1]}")
    page.get_by_text("overlay_file").wait_for()
    shoot(page, "ui_3_partition")
    page.get_by_text("Show Markdown").first.click()
    picture = page.get_by_role("img", name="tissue and outline")
    picture.wait_for()
    size = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert min(size) > 100
    shoot(page, "ui_4_overlay")


# The list of partitions sometimes covers what closes it; a suite that must be green cannot wait on that.
@pytest.mark.trial
def test_two_levels_are_launched_as_a_backfill_and_succeed(platform, go):
    page = go("/assets/slide_index?view=partitions")
    page.get_by_role("button", name="Materialize").first.wait_for()
    launch(page, "0", "1")
    for level in ("0", "1"):
        platform.wait(lambda level=level: platform.made_by("slide_index", level), 120, "the levels")
    platform.wait(platform.is_idle, 60, "the end of the runs")
    assert all(len(platform.made_by("slide_index", level)) == 1 for level in ("0", "1"))
    page = go("/runs")
    page.get_by_text("Success").first.wait_for()
    shoot(page, "ui_5_runs")


def test_the_checks_of_a_level_say_what_they_looked_at(go):
    page = go("/assets/slide_index?view=checks")
    for name in ("every_slide_takes_part", "outlines_off_tissue", "fits_its_level"):
        page.get_by_text(name).first.wait_for()
    shoot(page, "ui_6_checks")


@pytest.mark.trial
def test_the_index_shows_its_figures_and_picture(go):
    page = go("/assets/slide_index?view=partitions&partition=0")
    for entry in ("counts_by_slide", "counts_picture", "left_out"):
        page.get_by_text(entry).first.wait_for()
    shoot(page, "ui_7_index")
