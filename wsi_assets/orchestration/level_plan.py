"""Decide which artefacts are missing or out of date, from files, provenance records and parameters."""

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
    """Slide id -> reason why ``artefact`` must be made, for the slides for which it must.

    Args:
        slides: slide id -> its files as they are now.
        parameters: parameter sets, the later over the earlier.
    """
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
    """Asset name -> reason why it must be made, for a level, in order.

    An artefact that is made again with the same inputs is the same as before, so what depends on it stays up
    to date. A model is the exception: a second training gives other weights.

    Args:
        chain: artefacts to consider, each after its inputs.
        usable: slide id -> versions of its regions, see :func:`usable_slides`.
        parameters: parameter sets, the later over the earlier.
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
    """The inputs of an artefact of a level and their versions, as written to its record."""
    if artefact.gathers_slides:
        # One digest, because a cohort may have thousands of slides.
        return {"slides": digest(dict(usable)), "slide_count": len(usable)}
    return {one.name: versions.get(one.name) for one in artefact.inputs if one.by_level}


def usable_slides(
    storage: StorageResource, folder: SlideFolderResource, instance: dg.DagsterInstance
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The registered slides that a level can be made from, and those that it cannot.

    The paths of files do not matter: slides may be moved without being made again.

    Returns:
        slide id -> versions of its regions, and slide id -> reason why it is left out.

    Raises:
        SlideError: the folder of slides cannot be listed.
    """
    registered = instance.get_dynamic_partitions(SLIDES.name)
    found = {slide.slide_id for slide in folder.list().slides}
    known = known_slides(instance, registered)
    usable, left_out = {}, {}
    for slide_id in sorted(registered):
        seen, versions = known[slide_id], []
        if slide_id not in found:
            left_out[slide_id] = (
                "its file is not in the slide folder; put it back, or take it out for good "
                f"(wsi-assets retire {slide_id})"
            )
            continue
        for artefact in slide_artefacts():
            record = storage.record(artefact, slide_id)
            if record is None:
                left_out[slide_id] = (
                    f"it has no {artefact.name}: if they failed, correct the cause; then materialize them"
                )
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
