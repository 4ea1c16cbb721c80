"""What of a cohort is missing or out of date, decided from artefacts, their records and the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wsi_assets.errors import WsiAssetsError
from wsi_assets.files import digest
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.config import ParameterSet, options_of
from wsi_assets.orchestration.provenance import Provenance, read_record, recipe_of, why_out_of_date
from wsi_assets.orchestration.slide_folder import FileSeen

Seen = Mapping[str, Mapping[str, FileSeen]]


def stale_slides(
    provenance: Provenance, artefact: Artefact, slides: Seen, *parameters: ParameterSet
) -> dict[str, str]:
    """Slide id -> why its regions must be made again.

    Args:
        slides: what the files of each slide hold now.
    """
    used = options_of(artefact, None, *parameters).model_dump(mode="json")
    stale = {}
    for slide_id, files in sorted(slides.items()):
        inputs: dict[str, Any] = {source: files[source].version for source in artefact.sources}
        for one in artefact.inputs:
            above = provenance.record(one, slide_id)
            inputs[one.name] = above and above.version
        why = _why(provenance, artefact, slide_id, used, inputs)
        if why is not None:
            stale[slide_id] = why
    return stale


def stale_artefacts(
    provenance: Provenance,
    chain: Sequence[Artefact],
    level: str,
    usable: Mapping[str, list[str]],
    *parameters: ParameterSet,
) -> dict[str, str]:
    """Name -> why it must be made again, of a level's assets; what depends on it follows.

    Of the same inputs the same is made again, so nothing below a deleted store has to follow; below a
    model it has to, as that is another one when it is trained again.

    Args:
        chain: in the order in which they are made.
        usable: slide id -> versions of its regions, of the slides that can take part.
    """
    stale: dict[str, str] = {}
    versions: dict[str, str | None] = {}
    for artefact in chain:
        used = options_of(artefact, level, *parameters).model_dump(mode="json")
        inputs = inputs_of_level(artefact, usable, versions)
        again = [one.name for one in artefact.inputs if one.by_level and versions.get(one.name) is None]
        why = _why(provenance, artefact, level, used, inputs)
        if again and (why is None or why.endswith("changed")):
            why = f"{again[-1]} is made again"
        if why is None:
            record = provenance.record(artefact, level)
            versions[artefact.name] = record.version if record else None
            continue
        stale[artefact.name] = why
        known = artefact.reproducible and not again
        versions[artefact.name] = recipe_of(artefact, used, inputs) if known else None
    return stale


def inputs_of_level(
    artefact: Artefact, usable: Mapping[str, list[str]], versions: Mapping[str, str | None]
) -> dict[str, Any]:
    """What an artefact of a level is made from, as its record keeps it."""
    if artefact.gathers_slides:
        return slides_digest(usable)
    return {one.name: versions.get(one.name) for one in artefact.inputs if one.by_level}


def slides_digest(usable: Mapping[str, list[str]]) -> dict[str, Any]:
    """The regions that a level is made from: one digest for however many slides."""
    return {"slides": digest(dict(usable)), "slide_count": len(usable)}


def usable_slides(
    provenance: Provenance,
    regions: Sequence[Artefact],
    registered: Iterable[str],
    found: Mapping[str, str],
    known: Seen,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which slides a level can be made from, and why the others are left out.

    Args:
        regions: the assets of slides that a level takes.
        found: slide id -> path, of the slides in the folder.
        known: what was last reported of each slide's files.

    Returns:
        slide id -> versions of its regions; slide id -> reason. Where a file lies does not count: the slides
        may move, and nothing is to be made again.
    """
    usable, left_out = {}, {}
    for slide_id in sorted(registered):
        seen = known.get(slide_id, {})
        versions: list[str] = []
        if slide_id not in found:
            left_out[slide_id] = "its file is not in the slide folder; put it back, or retire the slide"
            continue
        for artefact in regions:
            record = provenance.record(artefact, slide_id)
            if record is None:
                left_out[slide_id] = f"it has no {artefact.name}; see why they failed, or materialize them"
                break
            if any(
                source in seen and record.inputs.get(source) != seen[source].version
                for source in artefact.sources
            ):
                left_out[slide_id] = (
                    f"its file changed since its {artefact.name} were made; materialize them again"
                )
                break
            versions.append(record.version)
        else:
            usable[slide_id] = versions
    return usable, left_out


def _why(
    provenance: Provenance,
    artefact: Artefact,
    partition: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> str | None:
    paths = provenance.paths
    record = read_record(paths.record(artefact, partition))
    try:
        return why_out_of_date(record, paths.is_there(artefact, partition), artefact, parameters, inputs)
    except WsiAssetsError as error:
        return str(error)
