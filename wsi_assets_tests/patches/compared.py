"""When two stores are the same: by their files' bytes, or by all that they say and give."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import lmdb

from wsi_assets.patches import open_store


def contents(path: Path) -> dict[str, str]:
    """Digest of every file of a store."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def held(path: Path) -> tuple:
    """All a store says and gives: how its files came to be is left out."""
    with open_store(path) as store:
        coded = [hashlib.sha256(store.encoded(index)).hexdigest() for index in range(len(store))]
        return store.info, store.keys, store.labels.tolist(), store.origins, coded


def held_by_other_readers(path: Path) -> dict[str, str]:
    """Key -> digest of its patch, as LMDB's and HDF5's own libraries find them."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            patches = {key.decode(): file["images"][row] for row, key in enumerate(file["keys"])}
    elif (path / "data.mdb").exists():
        with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as view:
            patches = {key.decode(): value for key, value in view.cursor() if not key.startswith(b"__")}
    else:
        patches = {file.stem: file.read_bytes() for file in path.rglob("*.png")}
    return {key: hashlib.sha256(value).hexdigest() for key, value in sorted(patches.items())}


def is_the_same_store(path: Path, other: Path) -> bool:
    return held(path) == held(other) and held_by_other_readers(path) == held_by_other_readers(other)


def only_the_store_is_left(path: Path) -> bool:
    return {name.name for name in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}
