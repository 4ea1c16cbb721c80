"""The storage folder: paths of artefacts, and the provenance record beside each of them.

The recipe of an artefact is a digest of its name, code version, parameters and the versions of its inputs. An
artefact is up to date if it exists and the recipe in its record equals the current one. Dagster's event log
is not used for this.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import ConfigError, StoreError, WsiAssetsError
from wsi_assets.files import digest, read_plain_pickle, write_json
from wsi_assets.orchestration.artefact import Artefact, all_artefacts
from wsi_assets.orchestration.config import ParameterFile
from wsi_assets.orchestration.partitions import parts_of
from wsi_assets.orchestration.settings import Settings
from wsi_assets.slides.resolution import Resolution, name_of

Result = tuple[bool, str]
"""Result of a check: whether it passed, and a text with details."""

STORE_POINTER = "patch_store.json"
"""File in the folder of a level that names its patch store."""


@dataclass(frozen=True)
class Record:
    """The provenance record of one artefact.

    Attributes:
        asset: name of the asset.
        partition: key of the partition.
        code_version: code version of the asset.
        parameters: all parameters of the asset, as used.
        inputs: name of an input -> its version.
        recipe: digest of name, code version, parameters and inputs, see :func:`recipe_of`.
        version: the recipe, or for a model a digest of its recipe and weights. Dagster's data version.
        facts: small plain values such as counts, seconds and the slides left out.
        run_id: id of the Dagster run.
    """

    asset: str
    partition: str | None
    code_version: str
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    recipe: str
    version: str
    facts: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None


class StorageResource(dg.ConfigurableResource):
    """Paths and records of artefacts; everything the platform writes is below ``storage_dir``."""

    storage_dir: str

    @classmethod
    def of(cls, settings: Settings) -> StorageResource:
        return cls(storage_dir=str(settings.storage_dir))

    @property
    def root(self) -> Path:
        return Path(self.storage_dir)

    @property
    def parameters(self) -> ParameterFile:
        return ParameterFile(self.root / "parameters.yaml")

    @property
    def mlflow_database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlartifacts"

    def slide_folder(self, slide_id: str) -> Path:
        return self.root / "slides" / slide_id

    def level_folder(self, level: str) -> Path:
        return self.root / name_of(level)

    def levels(self) -> list[str]:
        """Levels and magnifications that have a folder, in order."""
        return self._levels_in(self.root)

    def predicted_levels(self, slide_id: str) -> list[str]:
        """Levels and magnifications at which a slide was predicted, in order."""
        return self._levels_in(self.slide_folder(slide_id))

    def _levels_in(self, folder: Path) -> list[str]:
        found = []
        for path in folder.glob("*"):
            with contextlib.suppress(ConfigError):
                one = Resolution.parse(path.name.removeprefix("level_"))
                found += [one] if path.is_dir() and one.name == path.name else []
        return [one.key for one in sorted(found, key=lambda one: (one.mpp or 0, one.level or 0))]

    def mlflow_run(self, level: str) -> Path:
        """Path of the file that names the MLflow run of the level's model."""
        return self.level_folder(level) / "mlflow_run.json"

    def mlflow_note(self, level: str) -> dict[str, Any]:
        """Contents of that file (``run_id``, ``experiment``, ``uri``, ``page``, ``model_id``), or empty."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self.mlflow_run(level).read_text(encoding="utf-8"))
        return {}

    def artefact(self, artefact: Artefact, partition: str | None = None) -> Path:
        """Path of an artefact, a file or a folder, which may not exist."""
        return self.root / place_of(artefact.path, partition)

    def record_path(self, artefact: Artefact, partition: str | None = None) -> Path:
        return record_beside(self.artefact(artefact, partition))

    def is_there(self, artefact: Artefact, partition: str | None = None) -> bool:
        """Whether the files of an artefact exist."""
        path = self.artefact(artefact, partition)
        if path.name == STORE_POINTER:
            with contextlib.suppress(StoreError):
                return store_named_by(path).exists()
            return False
        return (path / artefact.main_file if artefact.main_file else path).exists()

    def record(self, artefact: Artefact, partition: str | None = None) -> Record | None:
        """The record of an artefact; None if the artefact or its record is missing or the record damaged."""
        if not self.is_there(artefact, partition):
            return None
        return read_record(self.record_path(artefact, partition))

    def version(self, artefact: Artefact, partition: str | None) -> str | None:
        """Version of an artefact; None if the artefact or its record is missing."""
        record = self.record(artefact, partition)
        return record and record.version

    def stored(self, artefact: Artefact, partition: str) -> Any:
        """Contents of an artefact that is a pickle; None if it is missing."""
        path = self.artefact(artefact, partition)
        return read_plain_pickle(path) if path.is_file() else None

    def feedback(
        self, artefact: Artefact, partition: str | None, parameters: Mapping[str, Any]
    ) -> dict[str, str | None]:
        """Name -> version of the artefacts read as feedback (see ``Artefact``) with these parameters."""
        names = [name for parameter, name in artefact.feedback.items() if parameters.get(parameter)]
        return {one.name: self.version(one, partition) for one in all_artefacts() if one.name in names}

    def keep_check_results(self, artefact: Artefact, partition: str, results: Mapping[str, Result]) -> None:
        """Write check results beside the artefact, with the version and run id that identify it."""
        record = read_record(self.record_path(artefact, partition))
        made = record and [record.version, record.run_id]
        write_json(self._check_results_path(artefact, partition), {"made": made, "results": results})

    def check_results(self, artefact: Artefact, partition: str) -> dict[str, Result]:
        """Name of a check -> its result; empty if none was evaluated since the artefact was made."""
        record = self.record(artefact, partition)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._check_results_path(artefact, partition).read_text(encoding="utf-8"))
            if record is not None and kept["made"] == [record.version, record.run_id]:
                return {name: (bool(passed), str(text)) for name, (passed, text) in kept["results"].items()}
        return {}

    def failed_checks(self, artefacts: Iterable[Artefact], partition: str) -> list[str]:
        """One line for each check that failed on the current artefacts."""
        return [
            f"{artefact.name} {name}: {text}"
            for artefact in artefacts
            for name, (passed, text) in self.check_results(artefact, partition).items()
            if not passed
        ]

    def require_checked(self, artefact: Artefact, partition: str) -> None:
        """Raise an error unless the blocking checks of the current artefact have passed.

        Raises:
            WsiAssetsError: a blocking check failed, or was not evaluated since the artefact was made.
        """
        results = self.check_results(artefact, partition)
        for name in artefact.must_pass:
            passed, text = results.get(name, (False, "not evaluated since it was made"))
            if not passed:
                raise WsiAssetsError(
                    f"nothing is made from {artefact.name} until its check {name} passes: {text}",
                    path=self.artefact(artefact, partition),
                    remedy="Correct the cause, then run the job level_checks or `wsi-assets run`",
                )

    def _check_results_path(self, artefact: Artefact, partition: str) -> Path:
        path = self.artefact(artefact, partition)
        return path.with_name(f"{path.name}.checks.json")

    def why_out_of_date(
        self,
        artefact: Artefact,
        partition: str | None,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, Any],
    ) -> str | None:
        """Reason why an artefact must be made with these parameters and inputs; None if it is up to date."""
        record = read_record(self.record_path(artefact, partition))
        if record is None:
            return "has no provenance record" if self.is_there(artefact, partition) else "is not made"
        if not self.is_there(artefact, partition):
            return "is not there any more"
        try:
            if record.recipe == recipe_of(artefact, parameters, inputs):
                return None
        except WsiAssetsError as error:
            return str(error)
        differs = [
            f"{name} was {record.parameters.get(name)!r} and is {value!r}"
            for name, value in parameters.items()
            if name not in artefact.without_effect and record.parameters.get(name) != value
        ]
        differs += [f"{name} changed" for name, value in inputs.items() if record.inputs.get(name) != value]
        if record.code_version != artefact.code_version or record.parameters.keys() != parameters.keys():
            differs.append("its code changed")
        return ", ".join(differs) or "a file that a parameter names changed"


def place_of(template: str, partition: str | None) -> str:
    """Path of a partition, relative to the storage folder, from the template in ``Artefact.path``."""
    slide, level = parts_of(partition)
    return template.format(partition=partition, slide=slide, level=name_of(level))


def record_beside(path: Path) -> Path:
    """Path of the provenance record of the artefact at ``path``."""
    return path.with_name(f"{path.name}.provenance.json")


def read_record(path: Path) -> Record | None:
    """The record at ``path``; None if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    return None


def recipe_of(artefact: Artefact, parameters: Mapping[str, Any], inputs: Any) -> str:
    """The recipe of an artefact: a digest of its name, code version, parameters and inputs.

    Parameters without effect on the contents are left out. A parameter that names a file or folder is
    replaced by the contents of the files.

    Args:
        inputs: name of an input -> its version or a plain value.

    Raises:
        SlideError: a file that a parameter names cannot be read.
    """
    from wsi_assets.slides.fingerprints import fingerprint

    effective = {}
    for name, value in parameters.items():
        if name in artefact.without_effect:
            continue
        files = []
        if name in artefact.may_name_a_file and value:
            named = Path(value)
            files = [named] if named.is_file() else sorted(one for one in named.rglob("*") if one.is_file())
        effective[name] = [fingerprint(file) for file in files] or value
    return digest(artefact.name, artefact.code_version, effective, inputs)


def store_named_by(pointer: Path) -> Path:
    """Path of the patch store that ``patch_store.json`` names.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return pointer.parent / json.loads(pointer.read_text(encoding="utf-8"))["store"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "names no patch store", path=pointer, remedy="Materialize patch_store of this level"
        ) from error
