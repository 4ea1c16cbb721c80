"""What an artefact was made from: a small JSON file beside it, and the digest that says whether it is out of
date.

A recipe is the digest of name, code version, parameters and the versions of the inputs. An artefact is up to
date if its file is there and its record's recipe is the one that would be followed now. The event log is not
asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wsi_assets.files import digest, write_json
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.paths import StoragePaths, record_of


@dataclass(frozen=True)
class Record:
    """The provenance of one artefact.

    Attributes:
        parameters: all of the asset's, as they were used.
        inputs: name of an input -> its version.
        recipe: digest of all that an artefact is made from.
        version: digest of the artefact: its recipe, and of a model also its weights. Dagster's data version.
        facts: small figures: counts, seconds, what was left out and why.
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

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def read_record(path: Path) -> Record | None:
    """The record at ``path``; None if it is missing or damaged, which counts as not made."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    return None


def forget_record(artefact_path: Path) -> None:
    """Remove an artefact's record before it is replaced: a kill in between leaves it unmade, never
    mislabelled."""
    record_of(artefact_path).unlink(missing_ok=True)


def write_record(artefact_path: Path, record: Mapping[str, Any]) -> None:
    """Publish the record of an artefact that is in its place."""
    write_json(record_of(artefact_path), dict(record))


def recipe_of(artefact: Artefact, parameters: Mapping[str, Any], inputs: Any) -> str:
    """The recipe of an artefact made with ``parameters`` from ``inputs``, versions or plain values.

    Raises:
        SlideError: a file that a parameter names, or one of a folder, is there and cannot be read.
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


class Provenance:
    """Reads the records of a storage folder.

    Args:
        paths: of the storage folder.
    """

    def __init__(self, paths: StoragePaths):
        self.paths = paths

    def record(self, artefact: Artefact, partition: str | None = None) -> Record | None:
        """The record of an artefact that is there; None if either is missing."""
        if not self.paths.is_there(artefact, partition):
            return None
        return read_record(self.paths.record(artefact, partition))

    def input_versions(self, artefact: Artefact, partition: str | None) -> dict[str, str | None]:
        """Version of each input of a level's artefact; None where one has no record."""
        records = {one.name: self.record(one, partition) for one in artefact.inputs if one.by_level}
        return {name: record and record.version for name, record in records.items()}


def why_out_of_date(
    record: Record | None,
    is_there: bool,
    artefact: Artefact,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> str | None:
    """Why an artefact must be made again, in a few words; None if it is up to date.

    Args:
        record: its provenance.
        is_there: whether its files exist.
        parameters, inputs: what it would be made with and from now.
    """
    if record is None:
        return "is not made" if not is_there else "has no provenance record"
    if not is_there:
        return "is not there any more"
    if record.recipe == recipe_of(artefact, parameters, inputs):
        return None
    differs = [
        f"{name} was {record.parameters.get(name)!r} and is {value!r}"
        for name, value in parameters.items()
        if name not in artefact.without_effect and record.parameters.get(name) != value
    ]
    differs += [f"{name} changed" for name, version in inputs.items() if record.inputs.get(name) != version]
    if record.code_version != artefact.code_version or record.parameters.keys() != parameters.keys():
        differs.append("its code changed")
    return ", ".join(differs) or "a file that a parameter names changed"
