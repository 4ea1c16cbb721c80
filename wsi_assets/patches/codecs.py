"""Patches to bytes and back, one place for each encoding.

Every encoding is one that ordinary image libraries decode. Files and databases do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wsi_assets.errors import StoreError

LOSSLESS = frozenset({"png", "qoi", "raw", "gzip", "pixels"})


_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "qoi": b"\0" * 7 + b"\1"}


def encoder(codec: str, quality: int | None = None) -> Callable[[np.ndarray], bytes]:
    """A function from uint8 (P, P, 3) RGB to bytes.

    ``jpeg`` is 4:4:4 at ``quality``. ``png`` uses the Sub filter at zlib level 1: stained tissue compresses
    as well with it as with the adaptive choice, in two thirds of the time. ``raw`` is binary PPM. HDF5 chunks
    are ``pixels``, or ``gzip`` at level ``quality``.
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
        if hasattr(cv2, "IMWRITE_PNG_FILTER"):
            png += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]

        def encode_png(pixels: np.ndarray) -> bytes:
            done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), png)
            if not done:
                raise ValueError(f"a patch of shape {pixels.shape} cannot be encoded as PNG")
            return data.tobytes()

        return encode_png
    if codec == "qoi":
        import imagecodecs

        return lambda pixels: bytes(imagecodecs.qoi_encode(np.ascontiguousarray(pixels)))
    if codec == "raw":
        return lambda pixels: b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
    if codec == "gzip":
        import zlib

        return lambda pixels: zlib.compress(pixels.tobytes(), int(quality or 1))
    if codec == "pixels":
        return lambda pixels: pixels.tobytes()
    raise StoreError(f"unknown codec {codec!r}", remedy="Use jpeg, png, qoi or raw")


def decoder(codec: str, patch_size: int) -> Callable[[bytes | memoryview], np.ndarray]:
    """A function from the bytes of :func:`encoder` to uint8 (P, P, 3) RGB that the caller owns.

    Bytes that are not such an image raise ValueError or the image library's own error.
    """
    shape = (patch_size, patch_size, 3)
    if codec == "jpeg":
        import imagecodecs

        def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
            _whole(data, _ENDS[codec])
            # The same pixels as OpenCV's, a seventh faster. Memory is the patch's, whatever the data claim.
            out = np.empty(shape, np.uint8)
            return _checked(imagecodecs.jpeg8_decode(data, outcolorspace="RGB", out=out), shape)

        return decode_jpeg
    if codec == "png":
        import cv2

        def decode_png(data: bytes | memoryview) -> np.ndarray:
            _whole(data, _ENDS[codec])
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            return _checked(pixels, shape)

        return decode_png
    if codec == "qoi":
        import imagecodecs

        def decode_qoi(data: bytes | memoryview) -> np.ndarray:
            _whole(data, _ENDS[codec])
            return _checked(imagecodecs.qoi_decode(data), shape)

        return decode_qoi
    if codec == "raw":
        header = len(b"P6\n%d %d\n255\n" % (patch_size, patch_size))
        return lambda data: np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()
    if codec == "gzip":
        import zlib

        return lambda data: np.frombuffer(bytearray(zlib.decompress(data)), np.uint8).reshape(shape)
    if codec == "pixels":
        return lambda data: np.frombuffer(data, np.uint8).reshape(shape).copy()
    raise StoreError(f"unknown codec {codec!r}", remedy="Build the store again")


def _whole(data: bytes | memoryview, end: bytes) -> None:
    """Decoders make grey of what a cut file lacks, so its last bytes are looked at first."""
    if bytes(data[-len(end) :]) != end:
        raise ValueError("is cut short")


def _checked(pixels: np.ndarray | None, shape: tuple[int, int, int]) -> np.ndarray:
    if pixels is None or pixels.shape != shape:
        raise ValueError(
            "is not a readable patch" if pixels is None else f"is a patch of shape {pixels.shape}"
        )
    return pixels
