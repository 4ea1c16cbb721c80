"""Files damaged at random: regions or the typed error, never anything else."""

from __future__ import annotations

import json
import random

import pytest

from wsi_assets.annotations import audit_table, read_annotation
from wsi_assets.errors import AnnotationError
from wsi_assets_tests.annotations.files import SQUARE, annotation, asap, closed, feature, geojson, square

FRAGMENTS = [
    b"NaN", b"-1", b"1e308", b"9" * 40, b"1,5", b"", b" ", b"<", b">", b"/>", b'"', b"&a;", b"&#0;", b"\x00",
    b"\xff\xfe", b"[", b"]", b"{", b"}", b",", b":", b"null", b"true", b"<!--", b"]]>", b"<!DOCTYPE a>",
    b"None", b"_2", b"Dot", b"Point", b"MultiPolygon", b"<Annotation>", b"</Annotation>", b"\\ud800",
]  # fmt: skip


def seeds(folder):
    rng = random.Random(5)
    wild = [(rng.randrange(60), rng.randrange(60)) for _ in range(30)]
    groups = '<Group Name="_0" PartOfGroup="None"/><Group Name="l" PartOfGroup="_0"/>'
    bodies = [
        annotation(SQUARE, "l"), annotation(wild, "_0", "Spline"), annotation(square(1, 1, 5), "_2"),
        annotation([(1, 2)], "None", "Dot"),
    ]  # fmt: skip
    xml = asap(folder, bodies, groups).read_bytes()
    collection = {
        "type": "FeatureCollection",
        "features": [
            feature("Polygon", [closed(wild), closed(square(2, 2, 4))], {"name": "Tumor"}, "a"),
            feature("MultiPolygon", [[closed(SQUARE)], [closed(square(30, 3, 9))]], {"names": ["Exclusion"]}),
            feature("Point", [1.5, 2], None),
        ],
    }
    return {".xml": xml, ".geojson": geojson(folder, collection).read_bytes()}


def mutated(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice([0, 1, 2, 5, 20, 200]))
        if rng.random() < 0.5:  # another digit keeps the file readable and the outline wild
            digits = [place for place, byte in enumerate(content) if byte in b"0123456789"]
            for place in rng.sample(digits, min(len(digits), 5)):
                content = content[:place] + rng.choice(b"0123456789-.").to_bytes() + content[place + 1 :]
            continue
        move = rng.randrange(5)
        if move == 0:
            content = content[:start] + rng.choice(FRAGMENTS) + content[start:]
        elif move == 1:
            content = content[:start] + rng.choice(FRAGMENTS) + content[stop:]
        elif move == 2:
            content = content[:start] + content[stop:]
        elif move == 3:
            content = content[:stop] + content[start:stop] * rng.choice([1, 3, 50]) + content[stop:]
        elif rng.random() < 0.8:
            content = content[:start] + rng.randbytes(stop - start) + content[stop:]
        else:
            content = content[:start]
    return content


def structurally_mutated(value, rng: random.Random):
    """The JSON value with one or more of its parts exchanged for something of another type."""
    if rng.random() < 0.03:
        return rng.choice(
            [None, True, -1, 1e300, 10**400, "Polygon", "x", [], {}, [[]], [[1, 2]], [1], value]
        )
    if isinstance(value, dict):
        return {key: structurally_mutated(item, rng) for key, item in value.items() if rng.random() > 0.01}
    if isinstance(value, list):
        return [structurally_mutated(item, rng) for item in value if rng.random() > 0.01]
    return value


def survive(folder, cases: int, seed: int) -> dict[str, int]:
    rng, outcomes = random.Random(seed), {"read": 0, "refused": 0}
    originals = seeds(folder)
    for case in range(cases):
        suffix, content = list(originals.items())[case % 5 == 4]
        if suffix == ".geojson" and rng.random() < 0.5:
            content = json.dumps(structurally_mutated(json.loads(content), rng)).encode()
        else:
            content = mutated(content, rng)
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        try:
            regions = read_annotation(path)
        except AnnotationError as error:
            message, regions = str(error), None
        if regions is None:
            outcomes["refused"] += 1
            assert "\n" not in message
            assert len(message) < 600
            continue
        outcomes["read"] += 1
        assert regions.geometry.is_valid
        # What is read can be stored and shown: a lone surrogate, which JSON allows, cannot.
        json.dumps(audit_table(regions.audit), ensure_ascii=False, allow_nan=False).encode()
    return outcomes


def test_damaged_files_give_regions_or_the_typed_error(tmp_path):
    outcomes = survive(tmp_path, 300, seed=0)
    # Both happen often, or the mutations test nothing.
    assert min(outcomes.values()) > 40, outcomes


@pytest.mark.trial
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_damaged_xml_files_give_regions_or_the_typed_error(tmp_path, seed):
    survive(tmp_path, 1250, seed)  # every fifth is GeoJSON
