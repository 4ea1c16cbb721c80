"""What of a cohort is missing or out of date, decided from artefacts, their records and the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from wsi_assets.files import digest
from wsi_assets.orchestration.artefact import Artefact, slide_artefacts
from wsi_assets.orchestration.config import ParameterSet, options_of
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import Seen, known_slides
from wsi_assets.orchestration.storage import StorageResource, recipe_of


def stale_slides(
    storage: StorageResource,
    artefact: Artefact,
    slides: Mapping[str, Seen],
    *parameters: ParameterSet,
) -> dict[str, str]:
    """Slide id -> why its regions must be made again, of slides whose files hold ``slides`` now."""
    used = options_of(artefact, None, *parameters).model_dump(mode="json")
    stale = {}
    for slide_id, files in sorted(slides.items()):
        inputs: dict[str, Any] = {source: files[source].version for source in artefact.sources}
        inputs |= {one.name: storage.version(one, slide_id) for one in artefact.inputs}
        why = storage.why_out_of_date(artefact, slide_id, used, inputs)
        if why:
            stale[slide_id] = why
    return stale


def stale_artefacts(
    storage: StorageResource,
    chain: Sequence[Artefact],
    level: str,
    usable: Mapping[str, list[str]],
    *parameters: ParameterSet,
) -> dict[str, str]:
    """Name -> why it must be made again, of a level's assets in order; what depends on it follows.

    Of the same inputs the same is made again, so nothing below a deleted store has to follow; below a
    model it has to, as that is another one when it is trained again. ``usable`` is of :func:`usable_slides`.
    """
    stale: dict[str, str] = {}
    optional = {one for artefact in chain for one in artefact.inputs if one.optional}
    versions = {one.name: storage.version(one, level) for one in optional}
    for artefact in chain:
        used = options_of(artefact, level, *parameters).model_dump(mode="json")
        inputs = inputs_of_level(artefact, usable, versions) | storage.feedback(artefact, level, used)
        needed = [one.name for one in artefact.inputs if one.by_level and not one.optional]
        again = [name for name in needed if versions.get(name) is None]
        why = storage.why_out_of_date(artefact, level, used, inputs)
        if again and (why is None or why.endswith("changed")):
            why = f"{again[-1]} is made again"
        if why is None:
            versions[artefact.name] = storage.version(artefact, level)
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
        # One digest for however many slides.
        return {"slides": digest(dict(usable)), "slide_count": len(usable)}
    return {one.name: versions.get(one.name) for one in artefact.inputs if one.by_level}


def usable_slides(
    storage: StorageResource, folder: SlideFolderResource, instance: dg.DagsterInstance
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Slide id -> versions of its regions, of those a level can be made from; slide id -> why it is left out.

    Where a file lies does not count: the slides may move, and nothing is to be made again.
    """
    registered = instance.get_dynamic_partitions(SLIDES.name)
    found = {slide.slide_id for slide in folder.list().slides}
    known = known_slides(instance, registered)
    usable, left_out = {}, {}
    for slide_id in sorted(registered):
        seen, versions = known[slide_id], []
        if slide_id not in found:
            left_out[slide_id] = "its file is not in the slide folder; put it back, or retire the slide"
            continue
        for artefact in slide_artefacts():
            record = storage.record(artefact, slide_id)
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
