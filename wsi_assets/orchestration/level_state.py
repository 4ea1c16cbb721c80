"""What is recorded and stored of one level, and whether its assets fit together. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.files import read_plain_pickle
from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.gates import Verdict, chain_breaks
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.lineage import Recorded, recorded, recorded_metadata, version_of
from wsi_assets.orchestration.registry import slide_states
from wsi_assets.orchestration.resources.library import SlideLibrary


def recorded_level(instance: dg.DagsterInstance, level: str) -> dict[str, Recorded]:
    """Asset -> what its latest materialization of a level says of itself; never made ones are absent."""
    found = {asset: recorded(instance, asset, [level]).get(level) for asset in catalog.LEVEL_ASSETS}
    return {asset: latest for asset, latest in found.items() if latest is not None}


class LevelState:
    """Reads a level's records and files when asked.

    Args:
        library: the slide folder.
        level: the partition key.
    """

    def __init__(
        self, instance: dg.DagsterInstance, layout: StorageLayout, library: SlideLibrary, level: str
    ):
        self.instance = instance
        self.layout = layout
        self.library = library
        self.level = level

    def metadata(self, asset: str) -> dict[str, Any]:
        """Metadata of the asset's latest materialization."""
        return recorded_metadata(self.instance, asset, self.level)

    def load(self, asset: str) -> dict[str, Any]:
        """The stored entries of ``slide_index``, ``sampled_index`` or ``test_predictions``."""
        return read_plain_pickle(self.layout.level_artefact(asset, self.level))

    def load_slide(self, asset: str, slide_id: str) -> Any:
        """The stored value of a slide asset."""
        return read_plain_pickle(self.layout.slide_artefact(asset, slide_id))

    def lineage(self) -> dict[str, Verdict]:
        """Asset -> whether it fits what it was made from, for every asset of the level that was made."""
        made = recorded_level(self.instance, self.level)
        versions = {asset: latest.version for asset, latest in made.items()}
        breaks = chain_breaks(catalog.LEVEL_ASSETS, versions, self._versions_now(made))
        first = next(iter(breaks), "")
        return {
            asset: Verdict(False, f"{breaks[asset]}. Materialize level {self.level} from {first} on")
            if asset in breaks
            else Verdict(True, "made from what there is now")
            for asset in made
        }

    def _versions_now(self, made: Mapping[str, Recorded]) -> dict[str, str]:
        now: dict[str, str] = {}
        above: str | None = None
        for asset, latest in made.items():
            made_from: Any = above
            if asset == "slide_index":
                now[asset] = self._index_version_now(latest)
            else:
                if asset == "patch_store":
                    made_from = [above, self.metadata("patch_store").get("backend")]
                now[asset] = version_of(asset, latest.parameters, made_from)
            above = latest.version
        return now

    def _index_version_now(self, index: Recorded) -> str:
        try:
            listing = self.library.look()
        except SlideError:
            listing = None
        version = ""
        # A slide that is merely gone from the folder does not make an index out of date.
        for as_last_seen in (False, True):
            usable, _ = slide_states(self.instance, listing, as_last_seen=as_last_seen)
            version = version_of("slide_index", index.parameters, [int(self.level), usable])
            if version == index.version:
                break
        return version
