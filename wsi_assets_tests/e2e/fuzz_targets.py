"""What each parser is fed: whole inputs, and the ways they are damaged.

A target is made once in a folder and returns its case. How cases are run and judged is ``fuzzing``'s.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import random
import shutil
import struct
from functools import partial
from pathlib import Path
from typing import Any

from wsi_assets.errors import ConfigError
from wsi_assets_tests.annotations.files import SQUARE, annotation, asap, closed, feature, geojson, square
from wsi_assets_tests.conftest import REAL_DATA
from wsi_assets_tests.e2e.fuzzing import Case

EDGES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20, 1 << 28, (1 << 63) - 1)
WILD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, -(10**9), 10**400, 1e300, math.nan, math.inf, "", "x"),
    *("\ud800", "../../x", b"", [], {}, [[]], [1], [None], {"a": 1}, [[1, 2]], [(0, 0, 0)], (1, 2)),
)


def damaged(content: bytes, rng: random.Random, places: list[tuple[int, int]] | None = None) -> bytes:
    """Bit flips, values of 1 to 8 bytes at their limits, cuts and repeats; mostly within ``places``."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not content:
            break
        if places and rng.random() < 0.8:
            low, high = rng.choice(places)
            at = min(len(content) - 1, rng.randrange(low, max(high, low + 1)))
        else:
            at = rng.randrange(len(content))
        move = rng.random()
        if move < 0.45:
            content[at] ^= 1 << rng.randrange(8)
        elif move < 0.75:
            size = rng.choice([1, 2, 4, 8])
            value = rng.choice(EDGES) & ((1 << 8 * size) - 1)
            content[at : at + size] = value.to_bytes(size, rng.choice(["little", "big"]))
        elif move < 0.82:
            content[at : at + 8] = rng.randbytes(8)
        elif move < 0.88:
            del content[at : at + rng.choice([1, 4, 20, 4096])]
        elif move < 0.92:
            content[at:at] = content[at : at + rng.choice([1, 4, 20, 4096])]
        else:
            del content[at:]
    return bytes(content)


def exchanged(value: Any, rng: random.Random, rate: float = 0.03) -> Any:
    """The value with one or more of its parts exchanged for something of another type, or gone."""
    if rng.random() < rate:
        return rng.choice(WILD)
    if isinstance(value, dict):
        return {key: exchanged(item, rng, rate) for key, item in value.items() if rng.random() > 0.02}
    if isinstance(value, (list, tuple)):
        return type(value)(exchanged(item, rng, rate) for item in value if rng.random() > 0.02)
    return value


def slides(folder: Path) -> Case:
    """Slides, as opened, read, searched for tissue and read patch by patch."""
    from wsi_assets.index import find_tissue
    from wsi_assets.index.options import TissueOptions
    from wsi_assets.patches.patch_reader import PatchReader
    from wsi_assets.slides import fingerprint, open_slide
    from wsi_assets_tests.slides.made import halved, picture, write_pyramid

    levels = [picture(512, 384, seed=4)]
    levels.append(halved(levels[0], 1))
    made = write_pyramid(folder / "made.tif", levels, mpp=0.25)
    gaps = write_pyramid(folder / "gaps.tif", levels, missing={(0, 1), (2, 2)})
    names = ("boxes.tiff", "unreadable.svs", "downsample_4_0058.tif", "CMU-1-Small-Region.svs")
    names += ("rgba_3level.tif", "tumor_001_level5.tif")
    whole = [made, gaps, *(REAL_DATA / "slides" / name for name in names)]
    seeds = [(path.suffix, path.read_bytes(), _tiff_places(path)) for path in whole]
    # Small files cost little, so they come more often.
    weights = [20, 20, 20, 8, 8, 1, 1, 1]

    def case(rng: random.Random, folder: Path) -> None:
        ((suffix, content, places),) = rng.choices(seeds, weights)
        path = folder / f"case{suffix}"
        path.write_bytes(damaged(content, rng, places))
        contents = fingerprint(path)
        with open_slide(path) as slide:
            assert slide.scale.base_magnification > 0
            for level in slide.levels[:12]:
                y, x = rng.randrange(max(1, level.height)), rng.randrange(max(1, level.width))
                region = slide.read_region(level.index, y, x, 96, 64)
                assert region.pixels.shape == (96, 64, 3)
            tissue = find_tissue(slide, TissueOptions(), contents)
            assert 0 <= tissue.tissue_share <= 1
        reader = PatchReader(path, 0)
        try:
            import numpy as np

            assert len(dict(reader.read(np.array([[0, 0], [64, 128]], np.int32), 64))) == 2
        finally:
            reader.close()

    return case


def _tiff_places(path: Path) -> list[tuple[int, int]]:
    """Where a TIFF's directories and small values lie: what its readers believe without a second look."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            places = [(0, 16)]
            for page in file.pages:
                places += [(tag.offset, tag.offset + 20) for tag in page.tags]
                places += [
                    (tag.valueoffset, tag.valueoffset + min(tag.valuebytecount, 64))
                    for tag in page.tags
                    if tag.valuebytecount > 8
                ]
                places += [(offset, offset + 600) for offset in page.dataoffsets[:3]]
            return places
    except Exception:  # an input that is damaged as it is
        return [(0, 600)]


_FRAGMENTS = [
    *(b"NaN", b"-1", b"1e308", b"9" * 40, b"1,5", b"", b" ", b"<", b">", b"/>", b'"', b"&a;", b"&#0;"),
    *(b"\x00", b"\xff\xfe", b"[", b"]", b"{", b"}", b",", b":", b"null", b"true", b"<!--", b"]]>"),
    *(b"<!DOCTYPE a>", b"None", b"_2", b"Dot", b"Point", b"MultiPolygon", b"<Annotation>", b"</Annotation>"),
    *(b"\\ud800", b"[" * 100_000, b"<a>" * 100_000),
]


def _rewritten(content: bytes, rng: random.Random) -> bytes:
    """Text with other digits, which leave it readable and its outlines wild, and with words out of place."""
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice([0, 1, 2, 5, 20, 200]))
        if rng.random() < 0.5:
            digits = [place for place, byte in enumerate(content) if byte in b"0123456789"]
            for place in rng.sample(digits, min(len(digits), 5)):
                content = content[:place] + rng.choice(b"0123456789-.").to_bytes() + content[place + 1 :]
            continue
        within = rng.choice(
            [
                content[start:stop] + rng.choice(_FRAGMENTS),
                rng.choice(_FRAGMENTS),
                b"",
                content[start:stop] * rng.choice([2, 4, 51]),
                rng.randbytes(stop - start),
            ]
        )
        content = content[:start] + within + content[stop:]
        if rng.random() < 0.02:
            content = content[:start]
    return content


def outlines(suffix: str, folder: Path) -> Case:
    """Outlines of a slide, or their correction, as read, shown on it, stored and laid over its patches."""
    from wsi_assets.annotations import TumorRegions, read_annotation
    from wsi_assets.index import TissueRegions, index_slide, overlay_jpeg
    from wsi_assets.index.options import IndexOptions

    tissue = TissueRegions.from_plain(_artefacts()["tissue"])
    base = _outline_file(suffix, folder)
    whole = base.read_bytes()

    def case(rng: random.Random, folder: Path) -> None:
        if suffix == ".geojson" and rng.random() < 0.5:
            content = json.dumps(exchanged(json.loads(whole), rng), default=repr).encode()
        else:
            content = _rewritten(whole, rng)
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        corrects = rng.random() < 0.5
        regions = read_annotation(base, correction=path) if corrects else read_annotation(path)
        assert regions.geometry.is_valid
        assert regions.ignored.is_valid
        # What is read can be stored and shown: a lone surrogate, which JSON allows, cannot.
        json.dumps(regions.to_plain()["audit"], ensure_ascii=False, allow_nan=False).encode()
        again = TumorRegions.from_plain(pickle.loads(pickle.dumps(regions.to_plain())))
        assert again.geometry.equals(regions.geometry)
        entry = index_slide(tissue, again, 0, IndexOptions(patch_size=64))
        assert all(0 <= share <= 1 for share in entry["tumor_fraction"])
        if rng.random() < 0.1:
            assert overlay_jpeg(tissue, regions)

    return case


def _outline_file(suffix: str, folder: Path) -> Path:
    """One tame ring, one that crosses itself many times, one cut out, one that has no area."""
    rng = random.Random(5)
    wild = [(rng.randrange(380), rng.randrange(500)) for _ in range(30)]
    if suffix == ".xml":
        groups = '<Group Name="_0" PartOfGroup="None"/><Group Name="l" PartOfGroup="_0"/>'
        bodies = [
            annotation(square(40, 40, 200), "l"),
            annotation(wild, "_0", "Spline"),
            annotation(square(60, 60, 30), "_2"),
            annotation([(1, 2)], "None", "Dot"),
        ]
        return asap(folder, bodies, groups)
    features = [
        feature("Polygon", [closed(wild), closed(square(20, 20, 40))], {"name": "Tumor"}, "a"),
        feature("MultiPolygon", [[closed(SQUARE)], [closed(square(300, 30, 90))]], {"names": ["Exclusion"]}),
        feature("Point", [1.5, 2], None),
    ]
    return geojson(folder, {"type": "FeatureCollection", "features": features})


def _artefacts() -> dict[str, Any]:
    """Small artefacts as the graph stores them."""
    import numpy as np

    from wsi_assets.annotations import read_annotation
    from wsi_assets.drawing import jpeg_of
    from wsi_assets.index import TissueRegions, index_slide
    from wsi_assets.index.options import IndexOptions
    from wsi_assets.slides import Level, Scale

    mask = np.zeros((16, 12), bool)
    mask[2:14, 1:11] = True
    tissue = TissueRegions(
        *("s_1", "/images/s_1.tif", "f" * 32, 5, 32.0, mask, 12.0),
        *((Level(0, 384, 512, 1.0), Level(1, 192, 256, 2.0)), Scale(40.0, "base_mag", 0.25, "file"), 0.7),
        picture=jpeg_of(np.full((128, 96, 3), 240, np.uint8)),
    )
    outline = read_annotation(REAL_DATA / "slides" / "downsample_4_0058.xml")
    entry = index_slide(tissue, None, 0, IndexOptions(patch_size=64))
    return {
        "tissue": tissue.to_plain(),
        "outline": {"annotation_path": "/a/s_1.xml", "regions": outline.to_plain()},
        "index": [entry, {**entry, "slide_path": "/images/s_2.tif"}],
    }


def pickles(folder: Path) -> Case:
    """The pickles between assets, and what the graph builds of each."""
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.files import read_plain_pickle
    from wsi_assets.index import TissueRegions, counts, sample_index
    from wsi_assets.index.options import SamplingOptions
    from wsi_assets.patches import plan_patches
    from wsi_assets.patches.options import ExtractionOptions

    artefacts = _artefacts()

    def case(rng: random.Random, folder: Path) -> None:
        kind = rng.choice(list(artefacts))
        value, path = artefacts[kind], folder / "case.pkl"
        if rng.random() < 0.5:
            content = pickle.dumps(exchanged(value, rng, 0.01), protocol=4)
        else:
            content = damaged(pickle.dumps(value, protocol=rng.choice([2, 3, 4, 4, 5])), rng)
        if rng.random() < 0.1:
            at = rng.randrange(len(content) + 1)
            claims = (b"\x8e", b"\x8d", b"\x96", b"\x95", b"X", b"B", b"\x8b", b"j")
            content = (
                content[:at] + rng.choice(claims) + struct.pack("<Q", rng.getrandbits(rng.randrange(64)))
            )
        path.write_bytes(content)
        plain = read_plain_pickle(path)
        if kind == "tissue":
            TissueRegions.from_plain(plain)
        elif kind == "outline":
            TumorRegions.from_plain(
                plain["regions"] if isinstance(plain, dict) and "regions" in plain else plain
            )
        else:
            sampled = sample_index(plain, SamplingOptions())
            counts(sampled)
            plan_patches(sampled, ExtractionOptions()).digest()

    return case


def stores(kind: str, folder: Path) -> Case:
    """A patch store, opened and read patch by patch."""
    from lmdb.verify import VerifyError, verify

    from wsi_assets.patches import STORE_NAMES, build_store, open_store, plan_patches
    from wsi_assets.patches.options import ExtractionOptions
    from wsi_assets_tests.patches.made import entry, grid, texture, write_slide

    slide = write_slide(folder / "slides" / "s_1.tif", texture(256, 256))
    whole = folder / "whole" / STORE_NAMES[kind]
    if not whole.exists():
        index = {"s_1": entry(slide, grid(256, 256, 32), 32)}
        plan = plan_patches(index, ExtractionOptions(extraction_workers=1))
        build_store(plan, whole, kind)
    files = [file for file in whole.rglob("*") if file.is_file()] if whole.is_dir() else [whole]
    contents = {file.relative_to(whole): file.read_bytes() for file in files}
    described = [name for name in contents if name.suffix != ".png"]

    def case(rng: random.Random, folder: Path) -> None:
        path = folder / "case" / whole.name
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        chosen = rng.choice(described if rng.random() < 0.8 else list(contents))
        content = contents[chosen]
        if chosen.suffix == ".json" and rng.random() < 0.6:
            new = json.dumps(exchanged(json.loads(content), rng), default=repr).encode()
        elif kind == "lmdb":
            new = _damaged_pages(content, rng)
        else:
            new = damaged(content, rng, [(0, 4096)])
        if whole.is_dir():
            shutil.copytree(whole, path, copy_function=_link)
            (path / chosen).unlink()
            (path / chosen).write_bytes(new)
        else:
            path.write_bytes(new)
        if kind == "lmdb" and len(new) >= len(content):
            with contextlib.suppress(VerifyError):
                if verify(str(path)):
                    return  # LMDB trusts the pages of its tree; its checker does not
        with open_store(path) as store:
            assert len(store.labels) == len(store.origins) == len(store)
            for number in range(min(len(store), 200)):
                assert store.get(number).shape == (32, 32, 3)

    return case


def _damaged_pages(content: bytes, rng: random.Random) -> bytes:
    starts = [*range(0, len(content), 4096)]
    return damaged(content, rng, [(start, start + 64) for start in starts] + [(0, 256)] * len(starts))


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def checkpoints(folder: Path) -> Case:
    """``best.pt``, loaded as the graph loads it, and as somebody's weights."""
    import torch

    from wsi_assets.files import write_json
    from wsi_assets.learning import load_model
    from wsi_assets.learning.checkpoints import model_card
    from wsi_assets.learning.models import build_model, read_state_dict
    from wsi_assets_tests.learning import tiny

    torch.set_num_threads(1)
    tiny.register()
    model, architecture = build_model("tiny", patch_size=32)
    payload = model.state_dict()
    chosen = {"thresholds": {"validation": None}, "calibration": None}
    write_json(folder / "best.json", model_card(architecture, patch_size=32, level=1, mpp=0.5, **chosen))
    torch.save(payload, folder / "best.pt")
    content, described = ((folder / f"best.{kind}").read_bytes() for kind in ("pt", "json"))
    names = [at for at in range(0, len(content), 1) if content[at : at + 2] == b"PK"]
    places = [(at, at + 64) for at in names] + [(0, 1500)] * 8 + [(len(content) - 400, len(content))] * 3

    def case(rng: random.Random, folder: Path) -> None:
        path = folder / "case.pt"
        (folder / "best.json").write_bytes(described)
        if rng.random() < 0.5:
            torch.save(exchanged(payload, rng), path)
        else:
            path.write_bytes(damaged(content, rng, places))
        if rng.random() < 0.3:
            build_model("tiny", patch_size=32, weights=str(path))
            read_state_dict(path)
        else:
            load_model(path)

    return case


_YAML_BITS = [
    *(
        "&a",
        "*a",
        "!!python/object:os.system",
        "!!int",
        "!!timestamp x",
        "? ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
    ),
    *("|", ">", "'", '"', "\t", "%YAML 9.9", "---", "...", "\x00", "\x85", "2020-13-45", "1e999", ".nan"),
    *("9" * 5000, "[" * 3000, "0x" + "f" * 9000, "1:" * 900 + "1", "<<: *a", "~", "=", "#", "\ud800"),
]


def configuration(folder: Path) -> Case:
    """A file of parameters, read and turned into every asset's options."""
    import yaml

    from wsi_assets.orchestration.artefact import all_artefacts
    from wsi_assets.orchestration.config import ParameterSet, options_of, parse_settings, read_parameters

    def resolve(parameters: ParameterSet) -> None:
        for artefact in all_artefacts():
            json.dumps(options_of(artefact, "4", parameters).model_dump(mode="json"))

    grouped = {artefact.name: artefact.options().model_dump(mode="json") for artefact in all_artefacts()}
    grouped["levels"] = {"4": {"patch_size": 128, "trained_model": {"lr": 0.01}}}
    whole = yaml.safe_dump(grouped)
    flat = yaml.safe_dump(
        {"max_epochs": 3, "lr": 0.001, "tumor_groups": ["a", "b"], "evaluation": {"seed": 1}}
    )

    def case(rng: random.Random, folder: Path) -> None:
        text = rng.choice([whole, flat, flat])
        if rng.random() < 0.03:
            laughs = "".join(f"x{i}: &x{i} [{f'*x{i - 1}, ' * 9 if i else 1}]\n" for i in range(9))
            content = f"{laughs}{rng.choice(['max_epochs', 'tumor_groups', 'lr'])}: *x8\n".encode()
        elif rng.random() < 0.3:
            content = yaml.safe_dump(exchanged(grouped, rng, 0.01)).encode(errors="surrogatepass")
        else:
            for _ in range(rng.choice([1, 1, 2, 5])):
                at = rng.randrange(len(text))
                text = text[:at] + rng.choice(_YAML_BITS) + text[at + rng.choice([0, 0, 1, 5]) :]
            content = text.encode(errors="surrogatepass")
            if rng.random() < 0.3:
                content = damaged(content, rng)
        path = folder / "case.yaml"
        path.write_bytes(content)
        if rng.random() < 0.2:
            line = content.decode(errors="surrogateescape").splitlines()
            resolve(parse_settings([rng.choice(line).replace(": ", "=", 1)] if line else ["="]))
        resolve(read_parameters(path))

    return case


def tables(folder: Path) -> Case:
    """The cohort's table and the list of incompletely outlined slides."""
    from wsi_assets.index.sampling import incomplete_slides
    from wsi_assets.slides import read_cohort

    table = b'slide_id,patient,split,base_mag,mpp\ntumor_001,p,test,40,0.25\nnormal_002,,,,0.5\n"a,b",,,20,\n'
    names = b"# not fully outlined\ntumor_010\nTumor_018  # edges\n\ntumor_020\n"
    bits = [
        b'"',
        b",",
        b"\n",
        b"\r",
        b"\x00",
        b"\xff\xfe",
        b"nan",
        b"1e400",
        b"-1",
        b"9" * 200_000,
        b"\xef\xbb\xbf",
    ]

    def case(rng: random.Random, folder: Path) -> None:
        path, content = folder / "case.csv", rng.choice([table, table, names])
        # A damaged header hides the rows: it is spared as often as not.
        head = content[: content.index(b"\n") + 1] if rng.random() < 0.6 else b""
        content = content[len(head) :]
        for _ in range(rng.choice([1, 2, 4])):
            at = rng.randrange(len(content) + 1)
            content = content[:at] + rng.choice(bits) + content[at + rng.choice([0, 1, 6]) :]
        if rng.random() < 0.5:
            content = damaged(content, rng)
        path.write_bytes(head + content)
        try:
            for row in read_cohort(folder, path).rows.values():
                assert all(math.isfinite(value) for value in (row.base_mag or 1, row.mpp or 1))
        except ConfigError:
            incomplete_slides(path)
            raise
        incomplete_slides(path)

    return case


def bad_parser(folder: Path) -> Case:
    """A parser with every fault that is looked for, to see that the look finds them."""
    import ctypes
    import os
    import time

    from wsi_assets.errors import SlideError

    calls = iter(range(7))
    started = json.loads((folder / "number").read_text()) + 1 if (folder / "number").exists() else 0
    for _ in range(started):
        next(calls)

    def case(rng: random.Random, folder: Path) -> None:
        match next(calls):
            case 0:
                1 / 0  # noqa: B018
            case 1:
                ctypes.string_at(0)
            case 2:
                bytearray(os.urandom(1)) * (1200 << 20)
            case 3:
                (folder.parent / "stray").mkdir()
            case 4:
                time.sleep(60)
            case 5:
                raise SlideError("x" * 2000)

    return case


TARGETS = {
    "bad_parser": bad_parser,
    "slides": slides,
    "xml": partial(outlines, ".xml"),
    "geojson": partial(outlines, ".geojson"),
    "pickles": pickles,
    "checkpoints": checkpoints,
    "lmdb": partial(stores, "lmdb"),
    "hdf5": partial(stores, "hdf5"),
    "fs": partial(stores, "fs"),
    "configuration": configuration,
    "tables": tables,
}
