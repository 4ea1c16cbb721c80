"""Encode patches to bytes and decode them again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np

from wsi_assets.errors import StoreError

LOSSLESS = frozenset({"png", "pixels"})

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def encoder(codec: str, quality: int | None = None) -> Callable[[np.ndarray], bytes]:
    """A function that encodes uint8 (P, P, 3) RGB to bytes.

    Args:
        codec: "jpeg", with 4:4:4 chroma; "png", with the Sub filter at zlib level 1, which compresses stained
            tissue as well as adaptive filters in two thirds of the time; or "pixels", the raw bytes, as HDF5
            holds them.
        quality: JPEG quality.
    """
    if codec == "jpeg":
        import imagecodecs

        jpeg = {"level": int(quality or 95), "colorspace": "RGB", "outcolorspace": "YCBCR"}
        return lambda pixels: imagecodecs.jpeg8_encode(
            np.ascontiguousarray(pixels), subsampling="444", **jpeg
        )
    if codec == "png":
        import cv2

        png = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # OpenCV 4.12
            png += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]
        return lambda pixels: cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), png)[1].tobytes()
    if codec == "pixels":
        return lambda pixels: pixels.tobytes()
    raise StoreError(f"unknown codec {codec!r}", remedy="Use jpeg or png")


def codec_of(data: bytes) -> str | None:
    """ "jpeg" or "png" by the first bytes of an image; None if it is neither."""
    return "jpeg" if data[:3] == _JPEG else "png" if data[:8] == _PNG else None


def decode(data: bytes, out: np.ndarray | None = None) -> np.ndarray:
    """Decode a JPEG or PNG image to uint8 (P, P, 3) RGB: ``out``, or a new array.

    Args:
        out: array for the pixels, uint8 (P, P, 3). Without it the image may have any size.

    Raises:
        ValueError, or an image library's own error: the bytes are not such an image, are cut short, or have
            another size than ``out``.
    """
    codec = codec_of(data)
    if codec is None:
        raise ValueError("is neither a JPEG nor a PNG image")
    # Decoders fill missing parts with gray, so the end marker is checked first; scanners pad tiles by some
    # bytes after it.
    if (_JPEG_END if codec == "jpeg" else _PNG_END) not in data[-18:]:
        raise ValueError("is cut short")
    if out is not None:
        import imagecodecs

        with contextlib.suppress(ValueError):  # a grayscale image, or another size
            # The same pixels as OpenCV's, in less time, and in no more memory than the pixels take.
            if codec == "jpeg":
                return imagecodecs.jpeg8_decode(data, outcolorspace="RGB", out=out)
            return imagecodecs.png_decode(data, out=out)
    pixels = _decode_any(data, None if out is None else out.shape[:2])
    if out is None:
        return pixels
    out[:] = pixels
    return out


def _decode_any(data: bytes, shape: tuple[int, int] | None) -> np.ndarray:
    import cv2
    from PIL import Image

    # OpenCV takes whatever memory a header claims; Pillow reads the header alone, and refuses absurd ones.
    with Image.open(io.BytesIO(data)) as header:
        claimed = header.height, header.width
    if shape not in (None, claimed):
        raise ValueError(f"is an image of {claimed} pixels, not {shape}")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError("is not a readable image")
    return pixels
