"""What the doctor says of names and levels, without opening a slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_assets.index.doctor import _downsamples, misnamed
from wsi_assets.slides import SlideFile


def doubted(annotation: str, *slides: str, annotated: tuple[str, ...] = ()) -> list[str]:
    """The slides that an annotation without a slide is likely meant for."""
    files = [SlideFile(s, Path(s), Path(f"{s}.xml") if s in annotated else None) for s in slides]
    return list(misnamed(files, [f"annotation without a slide: /a/{annotation}"]))


@pytest.mark.parametrize(
    "annotation",
    [
        "tumor_064_node1.xml",
        "Tumor_064_node_1.xml",
        "Tumor-64-node-1.geojson",
        "tumor_064_node_1.tif.geojson",
    ],
)
def test_a_slip_of_the_pen_in_the_name_of_an_annotation_is_noticed(annotation):
    slides = ("tumor_064_node_1", "tumor_064_node_2", "normal_001")
    assert doubted(annotation, *slides) == ["tumor_064_node_1"]


@pytest.mark.parametrize("annotation", ["tumor_065_node_1.xml", "tumor_064_node_3.xml", "normal_064.xml"])
def test_the_annotation_of_a_slide_that_is_not_here_is_no_mistake(annotation):
    assert doubted(annotation, "tumor_064_node_1", "tumor_064_node_2", "tumor_064") == []


def test_a_slide_that_has_its_annotation_wants_no_other():
    assert doubted("tumor_064_node1.xml", "tumor_064_node_1", annotated=("tumor_064_node_1",)) == []


def test_other_notices_are_not_taken_for_annotations():
    slides = [SlideFile("a_1", Path("a_1.tif"), None)]
    assert misnamed(slides, ["1 annotation lies beside its slide and is not used: /a/a1.xml"]) == {}


@pytest.mark.parametrize(
    ("downsamples", "shown"),
    [
        ([1.0], "1"),
        ([1.0, 4.0, 16.003], "1, 4, 16.003"),
        ([1.0, 2.0, 4.0, 8.0, 16.0], "1, 2 … 16"),
        ([1.0, 2.0, 4.016, 8.0, 16.1, 32.2], "1, 2 … 32.2"),
    ],
)
def test_many_downsamples_are_shown_by_their_ends(downsamples, shown):
    assert _downsamples(downsamples) == shown
