"""IO managers that write artefacts atomically to the storage folder and load them for downstream assets.

The path of an artefact comes from the asset's definition metadata (``path_template``, e.g.
``{level}/index.pkl``), by default ``<asset>/<partition>``. If the output metadata contains a provenance
record, it is written beside the artefact. The IO managers can be used in any Dagster project, for assets that
return a value of the type that they store.
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
"""Name of the output metadata entry that contains the provenance record."""


class StorageIOManager(dg.ConfigurableIOManager):
    """Base class: one partition is stored per run; several partitions are loaded as a mapping by key.

    Attributes:
        storage_dir: folder below which all artefacts are stored.
    """

    storage_dir: str

    @abstractmethod
    def store(self, path: Path, value: Any) -> dict[str, Any]:
        """Publish ``value`` at ``path`` and return metadata of what was written."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """The value for downstream assets of the artefact at ``path``; large data is read later."""

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
        """Store a value and its record; returns metadata of what was written."""
        # The old record goes first: after a kill in between, the artefact counts as not made.
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
            # A mapping is loaded also if it has one entry: only the partition of this run is loaded alone.
            if context.has_partition_key and keys == [context.partition_key]:
                return self.load(self.path_of(context, keys[0]))
            paths = {key: self.path_of(context, key) for key in keys}
            return {key: self.load(path) for key, path in paths.items() if path.exists()}

    def path_of(self, context: dg.InputContext | dg.OutputContext, partition: str | None) -> Path:
        """Path of a partition of the asset; None is the asset without partitions."""
        output = context.upstream_output if isinstance(context, dg.InputContext) else context
        template = ((output.definition_metadata if output else None) or {}).get("path_template")
        asset = "__".join(context.asset_key.path)
        if template is None:
            template = asset if partition is None else f"{asset}/{{partition}}"
        return Path(self.storage_dir) / place_of(str(template), partition)


class PickleIOManager(StorageIOManager):
    """Stores lists, dictionaries and other plain values as pickles; a pickle with a class is not loaded."""

    def store(self, path: Path, value: Any) -> dict[str, Any]:
        write_plain_pickle(path, value)
        return {"count": len(value) if isinstance(value, (list, dict)) else 1}

    def load(self, path: Path) -> Any:
        return read_plain_pickle(path)


class PatchStoreIOManager(StorageIOManager):
    """Stores patches: a staged store, or an iterable of (key, pixels, label) triples.

    The file at the asset's path names the store beside it that is in use. Downstream assets get an open
    store, which reads patches on demand.

    Attributes:
        backend: format of a store written from triples.
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
    """Stores triples in one LMDB environment, ``patches_lmdb/``."""


class Hdf5IOManager(PatchStoreIOManager):
    """Stores triples in one HDF5 file, ``patches.h5``."""

    backend: Backend = "hdf5"


class PngFolderIOManager(PatchStoreIOManager):
    """Stores triples in a folder of PNG files by class, ``image_patches/``."""

    backend: Backend = "fs"


class ModelIOManager(StorageIOManager):
    """Publishes ``checkpoints/`` and ``epoch_losses.csv`` from the folder of a finished training.

    Training writes to a folder of its own, so a level keeps its old model until the new one is complete.
    Downstream assets get the path of ``best.pt``.
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
    """Publishes a folder of files that an asset wrote; downstream assets get the path of the folder."""

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
