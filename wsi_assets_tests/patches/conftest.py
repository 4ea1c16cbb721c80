"""Slides shared by the tests of patches."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_assets_tests.patches.made import entry, grid, index_of, texture, write_slide


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> list[Path]:
    """Three slides of 1024 x 1536, 1024 x 1024 and 512 x 1536 pixels, two levels each."""
    folder = tmp_path_factory.mktemp("slides")
    sizes = {"normal_001": (1024, 1536), "test_001": (1024, 1024), "tumor_001": (512, 1536)}
    return [
        write_slide(folder / f"{name}.tif", texture(*size, seed=seed), levels=2)
        for seed, (name, size) in enumerate(sizes.items())
    ]


@pytest.fixture(scope="session")
def entries(cohort) -> list[dict]:
    """Patches of 128 px on the whole of level 0: 96 + 64 + 48."""
    sizes = [(1024, 1536), (1024, 1024), (512, 1536)]
    return [entry(path, grid(*size, 128), 128) for path, size in zip(cohort, sizes, strict=True)]


@pytest.fixture(scope="session")
def index(entries) -> dict[str, dict]:
    """All three slides."""
    return index_of(*entries)


@pytest.fixture(params=["lmdb", "hdf5", "fs"])
def backend(request) -> str:
    """Every kind of store; a new kind is added here and passes the same tests."""
    return request.param
