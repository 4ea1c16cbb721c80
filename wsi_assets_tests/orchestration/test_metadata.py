"""Pictures and numbers in the metadata for the UI."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from wsi_assets.orchestration.metadata import MAX_PICTURE_BYTES, MAX_PICTURE_WIDTH, picture, rounded


def shown(image: bytes) -> bytes:
    """The bytes of the picture in the metadata."""
    return base64.b64decode(picture(image, "a picture").value.split("base64,")[1].removesuffix(")"))


def png(height: int, width: int) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def test_a_picture_that_fits_is_not_changed():
    assert shown(png(40, 60)) == png(40, 60)


@pytest.mark.parametrize(("height", "width"), [(4, 2 * MAX_PICTURE_WIDTH), (500, 1000), (900, 1800)])
def test_a_picture_that_is_too_large_is_scaled_down_with_its_aspect_ratio(height, width):
    data = shown(png(height, width))
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert len(data) <= MAX_PICTURE_BYTES
    assert pixels.shape[1] <= MAX_PICTURE_WIDTH
    assert pixels.shape[0] == pytest.approx(pixels.shape[1] * height / width, abs=1)


def test_numbers_have_four_digits():
    assert [rounded(value) for value in (0.98662207, 1234.567, 0.000619155, 0.0)] == [
        0.9866,
        1235.0,
        0.0006192,
        0.0,
    ]
