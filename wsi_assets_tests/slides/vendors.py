"""Slides as some vendors write them, made small: no real one is at hand."""

from __future__ import annotations

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from wsi_assets_tests.slides.made import halved, padded

_APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (128x128) JPEG/RGB Q=70|{fields}"
_WHOLE_SLIDE_MICROSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.6"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


def write_svs(path: Path, image: np.ndarray, fields: str) -> Path:
    """Aperio's: two tiled levels (1, 4), a thumbnail, a label; ``fields`` like "AppMag = 20|MPP = 0.499"."""
    description = _APERIO.format(w=image.shape[1], h=image.shape[0], fields=fields)
    tiled = {"tile": (128, 128), "compression": "jpeg", "compressionargs": {"level": 90}}
    with tifffile.TiffWriter(path) as file:
        for k in (0, 2):
            file.write(halved(image, k), photometric="rgb", description=description, metadata=None, **tiled)
            if k == 0:
                file.write(halved(image, 3), photometric="rgb", description=description, metadata=None)
        file.write(
            image[:90, :90].copy(), photometric="rgb", description="Aperio\r\nlabel 90x90", subfiletype=1
        )
    return path


def write_jp2k_svs(
    path: Path, levels: list[np.ndarray], compression: int, tile: int = 128
) -> list[np.ndarray]:
    """Aperio's with lossless JPEG 2000: components as they are (33005) or called YCbCr (33003).

    Returns the levels' pixels as RGB.
    """
    with tifffile.TiffWriter(path) as file:
        for k, level in enumerate(levels):
            description = _APERIO.format(w=level.shape[1], h=level.shape[0], fields="AppMag = 20|MPP = 0.499")
            high, wide = (-(-side // tile) for side in level.shape[:2])
            whole = padded(level, tile)
            parts = (part for row in np.split(whole, high) for part in np.split(row, wide, axis=1))
            file.write(
                (
                    imagecodecs.jpeg2k_encode(
                        np.ascontiguousarray(part), level=0, codecformat="j2k", mct=False, reversible=True
                    )
                    for part in parts
                ),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                description=description,
                metadata=None,
            )
            if k == 0:
                file.write(levels[-1], photometric="rgb", description=description, metadata=None)
    if compression == 33005:
        return levels
    found = []
    for level in levels:
        y, cb, cr = (level[..., i].astype(float) - (128 if i else 0) for i in range(3))
        green = np.floor(y - 0.34414 * cb - 0.71414 * cr + 0.5)
        rgb = np.stack([y + np.rint(1.402 * cr), green, y + np.rint(1.772 * cb)], axis=-1)
        found.append(np.clip(rgb, 0, 255).astype(np.uint8))
    return found


def write_scn(
    path: Path, image: np.ndarray, corner: tuple[int, int], whole: tuple[int, int], mpp: float
) -> Path:
    """Leica's: one scanned area of two levels (1, 4), its corner at (x, y) of a slide of (width, height)."""
    nm = round(mpp * 1000)
    levels = [image, halved(image, 2)]
    sizes = [(64, 64), *((level.shape[1], level.shape[0]) for level in levels)]

    def entry(number: int, power: float, first: int, last: int, view: tuple[int, int, int, int]) -> str:
        dimensions = "".join(
            f'<dimension sizeX="{w}" sizeY="{h}" r="{at}" ifd="{first + at}"/>'
            for at, (w, h) in enumerate(sizes[first : last + 1])
        )
        width, height = sizes[first]
        place = " ".join(
            f'{name}="{value}"'
            for name, value in zip(("sizeX", "sizeY", "offsetX", "offsetY"), view, strict=True)
        )
        return (
            f'<image name="{number}" uuid="urn:uuid:{number}">'
            "<creationDate>2013-01-01T00:00:00Z</creationDate>"
            f'<device model="Leica SCN400;Leica SCN" version="1.5"/><pixels sizeX="{width}" sizeY="{height}">'
            f'{dimensions}</pixels><view {place} spacingZ="0"/>'
            f"<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings><illuminationSource>brightfield"
            "</illuminationSource><numericalAperture>0.65</numericalAperture></illuminationSettings>"
            "</scanSettings></image>"
        )

    full = (whole[0] * nm, whole[1] * nm)
    area = (image.shape[1] * nm, image.shape[0] * nm, corner[0] * nm, corner[1] * nm)
    xml = (
        '<?xml version="1.0"?>'
        '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:9">'
        f'<collection name="c" uuid="urn:uuid:8" sizeX="{full[0]}" sizeY="{full[1]}"><barcode/>'
        f"{entry(1, 0.6, 0, 0, (*full, 0, 0))}{entry(2, 40, 1, 2, area)}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for k, level in enumerate([image[:64, :64].copy(), *levels]):
            file.write(
                level,
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                metadata=None,
                description=None if k else xml,
            )
    return path


def write_philips(path: Path, image: np.ndarray, mpp: float, tile: int = 128) -> Path:
    """Philips': three levels padded to whole tiles, which state their own pixel spacing."""
    spacings = [f"&quot;{mpp * 2**k / 1000:.8f}&quot; &quot;{mpp * 2**k / 1000:.8f}&quot;" for k in range(3)]
    levels = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        + _attribute("DICOM_PIXEL_SPACING", 0x28, 0x30, "IDoubleArray", spacing)
        + "</DataObject>"
        for spacing in spacings
    )
    scan = (
        _attribute("PIM_DP_IMAGE_TYPE", 0x301D, 0x1004, "IString", "WSI")
        + _attribute("DICOM_PIXEL_SPACING", 0x28, 0x30, "IDoubleArray", spacings[0])
        + _array("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", 0x1001, 0x8B01, levels)
    )
    scans = f'<DataObject ObjectType="DPScannedImage">{scan}</DataObject>'
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + _attribute("DICOM_MANUFACTURER", 0x8, 0x70, "IString", "PHILIPS")
        + _array("PIM_DP_SCANNED_IMAGES", 0x301D, 0x1003, scans)
        + "</DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for k in range(3):
            file.write(
                padded(halved(image, k), tile, 255),
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                description=f"level={k}" if k else description,
                software=None if k else "Philips DP v1.0",
                subfiletype=int(k > 0),
                metadata=None,
            )
    return path


def write_dicom(folder: Path, image: np.ndarray, mpp: float, tile: int = 128) -> Path:
    """A folder of DICOM files, one for each of three levels (PS3.3 A.32.8, tiled in full)."""
    folder.mkdir()
    for k in range(3):
        level = halved(image, k)
        high, wide = (-(-side // tile) for side in level.shape[:2])
        whole = np.pad(
            level,
            ((0, high * tile - level.shape[0]), (0, wide * tile - level.shape[1]), (0, 0)),
            mode="edge",
        )
        frames = [
            _even(
                imagecodecs.jpeg8_encode(np.ascontiguousarray(part), level=90, outcolorspace="ycbcr"), b"\0"
            )
            for row in np.split(whole, high)
            for part in np.split(row, wide, axis=1)
        ]
        spacing = f"{mpp * 2**k / 1000:.8f}"
        content = [
            _element(0x08, 0x08, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\" + ("RESAMPLED" if k else "NONE")),
            _element(0x08, 0x16, "UI", _WHOLE_SLIDE_MICROSCOPY),
            _element(0x08, 0x18, "UI", f"1.2.3.5.{k}"),
            _element(0x08, 0x60, "CS", "SM"),
            _element(0x20, 0x0D, "UI", "1.2.3.9"),
            _element(0x20, 0x0E, "UI", "1.2.3.8"),
            _element(0x20, 0x9311, "CS", "TILED_FULL"),
            _element(0x28, 0x02, "US", 3),
            _element(0x28, 0x04, "CS", "YBR_FULL_422"),
            _element(0x28, 0x06, "US", 0),
            _element(0x28, 0x08, "IS", str(len(frames))),
            *(_element(0x28, tag, "US", tile) for tag in (0x10, 0x11)),
            *(_element(0x28, 0x100 + i, "US", value) for i, value in enumerate((8, 8, 7, 0))),
            _element(0x48, 0x06, "UL", level.shape[1]),
            _element(0x48, 0x07, "UL", level.shape[0]),
            _element(0x48, 0x303, "UL", 1),
            _sequence(
                0x5200,
                0x9229,
                _sequence(0x28, 0x9110, _element(0x28, 0x30, "DS", f"{spacing}\\{spacing}")),
            ),
            _pixel_data(frames),
        ]
        meta = b"".join(
            [
                _element(0x02, 0x01, "OB", b"\0\1"),
                _element(0x02, 0x02, "UI", _WHOLE_SLIDE_MICROSCOPY),
                _element(0x02, 0x03, "UI", f"1.2.3.5.{k}"),
                _element(0x02, 0x10, "UI", _JPEG_BASELINE),
                _element(0x02, 0x12, "UI", "1.2.3.4"),
            ]
        )
        head = bytes(128) + b"DICM" + _element(0x02, 0x00, "UL", len(meta)) + meta
        (folder / f"level{k}.dcm").write_bytes(head + b"".join(content))
    return folder


def _attribute(name: str, group: int, element: int, kind: str, value: str) -> str:
    place = f'Group="0x{group:04X}" Element="0x{element:04X}"'
    return f'<Attribute Name="{name}" {place} PMSVR="{kind}">{value}</Attribute>'


def _array(name: str, group: int, element: int, items: str) -> str:
    return _attribute(name, group, element, "IDataObjectArray", f"<Array>{items}</Array>")


def _element(group: int, element: int, kind: str, value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        value = struct.pack("<H" if kind == "US" else "<I", value)
    data = value.encode() if isinstance(value, str) else value
    data = _even(data, b"\0" if kind in ("UI", "OB") else b" ")
    tag = struct.pack("<HH", group, element) + kind.encode()
    if kind in ("OB", "SQ"):
        return tag + struct.pack("<HI", 0, len(data)) + data
    return tag + struct.pack("<H", len(data)) + data


def _sequence(group: int, element: int, item: bytes) -> bytes:
    return _element(group, element, "SQ", _item(item))


def _item(data: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(data)) + data


def _pixel_data(frames: list[bytes]) -> bytes:
    starts = np.cumsum([0, *(8 + len(frame) for frame in frames[:-1])])
    items = [_item(starts.astype("<u4").tobytes()), *map(_item, frames)]
    head = struct.pack("<HH", 0x7FE0, 0x10) + b"OB" + struct.pack("<HI", 0, 0xFFFFFFFF)
    return head + b"".join(items) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _even(data: bytes, fill: bytes) -> bytes:
    return data + fill * (len(data) % 2)
