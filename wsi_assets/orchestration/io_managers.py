"""IO managers store and load: each publishes atomically and hands a light value downstream.

An asset says where it is stored in its metadata (``path_template``, e.g. ``{level}/index.pkl``); one
that does not goes to ``<asset>/<partition>``. An asset that returns its provenance in its metadata gets it
written beside the artefact. Every class works alone, in any graph, with any asset that returns what it
stores.
"""

import os
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import ModelError, WsiAssetsError
from wsi_assets.files import (
    publish_file,
    publish_folder,
    read_plain_pickle,
    size_of,
    write_json,
    write_plain_pickle,
)
from wsi_assets.orchestration.metadata import picture, user_errors_as_failures
from wsi_assets.orchestration.storage import place_of, record_beside, store_named_by
from wsi_assets.patches.options import Backend

if TYPE_CHECKING:
    from wsi_assets.patches import PatchStore, StagedStore

PROVENANCE = "provenance"
"""Metadata entry with the record of an artefact."""


class StorageIOManager(dg.ConfigurableIOManager):
    """What all have in common: where a partition lies, one stored a run, several loaded as a mapping."""

    storage_dir: str

    @abstractmethod
    def store(self, path: Path, value: Any) -> dict[str, Any]:
        """Publish ``value`` at ``path`` and return metadata of what was written."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """A light handle of what lies at ``path``."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        keys = list(context.asset_partition_keys) if context.has_asset_partitions else [None]
        if len(keys) != 1:
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} writes one partition a run, not {len(keys)}",
                allow_retries=False,
            )
        path = self.path_of(context, keys[0])
        record = context.output_metadata.get(PROVENANCE)
        with user_errors_as_failures():
            context.add_output_metadata(self.publish(path, obj, record and getattr(record, "value", record)))

    def publish(self, path: Path, value: Any, record: Mapping[str, Any] | None) -> dict[str, Any]:
        """Store a value and its record; a kill in between leaves the artefact unmade, never mislabelled."""
        record_beside(path).unlink(missing_ok=True)
        stored = self.store(path, value)
        if record is not None:
            write_json(record_beside(path), dict(record))
        return {"path": dg.MetadataValue.path(str(path)), "size_bytes": size_of(path), **stored}

    def load_input(self, context: dg.InputContext) -> Any:
        with user_errors_as_failures():
            if not context.has_asset_partitions:
                return self.load(self.path_of(context, None))
            keys = list(context.asset_partition_keys)
            # By whose partitions they are, never by how many there happen to be.
            if context.has_partition_key and keys == [context.partition_key]:
                return self.load(self.path_of(context, keys[0]))
            paths = {key: self.path_of(context, key) for key in keys}
            return {key: self.load(path) for key, path in paths.items() if path.exists()}

    def path_of(self, context: dg.InputContext | dg.OutputContext, partition: str | None) -> Path:
        """Where a partition of the asset lies."""
        output = context.upstream_output if isinstance(context, dg.InputContext) else context
        template = ((output.definition_metadata if output else None) or {}).get("path_template")
        asset = "__".join(context.asset_key.path)
        if template is None:
            template = asset if partition is None else f"{asset}/{{partition}}"
        return Path(self.storage_dir) / place_of(str(template), partition)


class PickleIOManager(StorageIOManager):
    """Plain values as pickles that load anywhere; one that names a class is refused on reading."""

    def store(self, path: Path, value: Any) -> dict[str, Any]:
        write_plain_pickle(path, value)
        return {"count": len(value) if isinstance(value, (list, dict)) else 1}

    def load(self, path: Path) -> Any:
        return read_plain_pickle(path)


class PatchStoreIOManager(StorageIOManager):
    """A store that an asset built, or a new one of (key, pixels, label) triples; a lazy handle downstream.

    The file at an asset's path names the store in use beside it, so that a reader opens the right one
    whatever comes next. ``backend`` is that of triples.
    """

    backend: Backend = "lmdb"

    def store(self, path: Path, value: "StagedStore | Iterable[tuple[str, Any, int]]") -> dict[str, Any]:
        from wsi_assets.patches import STORE_NAMES, StagedStore, mosaic_png, open_store, write_patches

        if isinstance(value, StagedStore):
            built = value.publish()
        else:
            built = write_patches(path.parent / STORE_NAMES[self.backend], self.backend, value)
        write_json(path, {"store": built.path.name, "backend": built.backend})
        with open_store(built.path) as store:
            mosaic = picture(mosaic_png(store), "patches by class")
        return {
            "path": dg.MetadataValue.path(str(built.path)),
            "size_bytes": built.bytes,
            "backend": built.backend,
            "count": built.patches,
            "mosaic": mosaic,
        }

    def load(self, path: Path) -> "PatchStore":
        from wsi_assets.patches import open_store

        return open_store(store_named_by(path))


class LmdbIOManager(PatchStoreIOManager):
    """Triples as one LMDB environment, ``patches_lmdb/``."""


class Hdf5IOManager(PatchStoreIOManager):
    """Triples as one HDF5 file, ``patches.h5``."""

    backend: Backend = "hdf5"


class PngFolderIOManager(PatchStoreIOManager):
    """Triples as a folder of PNG files by class, ``image_patches/``."""

    backend: Backend = "fs"


class ModelIOManager(StorageIOManager):
    """Publishes the ``checkpoints/`` and ``epoch_losses.csv`` of a finished training's folder.

    A training in progress writes elsewhere, so a level keeps its old model until the new one is whole.
    Downstream gets the path of ``best.pt``; the weights are read where they are used.
    """

    def store(self, path: Path, value: Path) -> dict[str, Any]:
        losses = path.parent / "epoch_losses.csv"
        with publish_file(losses) as unfinished:
            shutil.copyfile(value / losses.name, unfinished)
        with publish_folder(path) as unfinished:
            for file in sorted((value / "checkpoints").iterdir()):
                if file.suffix in (".pt", ".json"):
                    _link_or_copy(file, unfinished / file.name)
        return {"path": dg.MetadataValue.path(str(path / "best.pt")), "epoch_losses": str(losses)}

    def publish(self, path: Path, value: Path, record: Mapping[str, Any] | None) -> dict[str, Any]:
        stored = super().publish(path, value, record)
        shutil.rmtree(value, ignore_errors=True)
        return stored

    def load(self, path: Path) -> Path:
        best = path / "best.pt"
        if not best.is_file():
            raise ModelError("does not exist", path=best, remedy="Materialize the model that writes it")
        return best


class ReportIOManager(StorageIOManager):
    """Publishes a folder that an asset wrote, whole; downstream gets the folder's path."""

    def store(self, path: Path, value: Path) -> dict[str, Any]:
        with publish_folder(path) as unfinished:
            for file in sorted(value.iterdir()):
                file.replace(unfinished / file.name)
        value.rmdir()
        pages = sorted(path.glob("*.html"))
        shown = {"page": dg.MetadataValue.url(pages[0].as_uri())} if pages else {}
        return {**shown, "count": sum(1 for file in path.rglob("*") if file.is_file())}

    def load(self, path: Path) -> Path:
        if not path.is_dir():
            raise WsiAssetsError("does not exist", path=path, remedy="Materialize the report")
        return path


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)
