"""``Artefact``: the description of one asset, with its name, path, options, code version and inputs.

Each module of ``assets`` begins with the descriptions of its assets. Paths, provenance, parameters, checks
and the command line are derived from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict

from wsi_assets.orchestration import assets
from wsi_assets.orchestration.partitions import LEVELS, SLIDES, SLIDES_AND_LEVELS

GROUP = "cohort"
"""All assets are in one group, because the UI expands a single group and collapses several."""


class NoOptions(BaseModel):
    """The options of an asset without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Artefact:
    """What an asset stores and how it is made.

    Attributes:
        name: name of the asset.
        code_version: to be raised when a change of the code changes the contents of the artefact.
        path: relative to the storage folder. It contains ``{slide}`` if the asset has one partition per
            slide, ``{level}`` if one per level, both if one per slide and level. ``{level}`` becomes
            ``level_4`` for pyramid level 4 and ``10x`` for magnification 10x.
        options: option class of the domain code; its fields are the parameters of the asset.
        inputs: artefacts that it is made from.
        feedback: parameter -> name of a downstream artefact of the same level. While the parameter is on,
            that artefact, as stored, is read as an additional input; it cannot be in ``inputs``, because an
            asset graph has no cycles.
        sources: files of the user that it is made from: ``slide_image``, ``slide_annotation``.
        main_file: file that must exist for the folder at ``path`` to count as made; None if ``path`` is a
            file.
        without_effect: parameters that do not change the contents, e.g. the number of workers.
        may_name_a_file: parameters whose value may be a path; the contents of that file count, not its path.
        optional: made only on request; artefacts that have it as an input can be made without it.
        reproducible: the same recipe gives the same contents. False for a trained model.
        must_pass: names of the checks that must pass before anything is made from it.
        shown: names of the facts that the command line prints.
        automation: time zone -> condition under which Dagster makes it automatically; None for never.
    """

    name: str
    code_version: str
    path: str
    options: type[BaseModel] = NoOptions
    inputs: tuple[Artefact, ...] = ()
    feedback: Mapping[str, str] = field(default_factory=dict, hash=False)
    sources: tuple[str, ...] = ()
    main_file: str | None = None
    without_effect: frozenset[str] = frozenset()
    may_name_a_file: frozenset[str] = frozenset()
    optional: bool = False
    reproducible: bool = True
    must_pass: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    automation: Callable[[str], dg.AutomationCondition] | None = None

    @property
    def by_slide(self) -> bool:
        return "{slide}" in self.path

    @property
    def by_level(self) -> bool:
        return "{level}" in self.path

    @property
    def gathers_slides(self) -> bool:
        """Whether one partition is made from the regions of all slides."""
        return not self.by_slide and any(one.by_slide for one in self.inputs)

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey(self.name)

    @cached_property
    def partitions_def(self) -> dg.PartitionsDefinition | None:
        if self.by_slide and self.by_level:
            return SLIDES_AND_LEVELS
        return SLIDES if self.by_slide else LEVELS if self.by_level else None

    def asset_arguments(self, *, io_manager_key: str = "pickle_io") -> dict[str, Any]:
        """Arguments for ``@dg.asset``; IO managers read ``path`` from the asset's metadata."""
        return {
            "name": self.name,
            "code_version": self.code_version,
            "group_name": GROUP,
            "metadata": {"path_template": self.path},
            "partitions_def": self.partitions_def,
            "io_manager_key": io_manager_key,
        }


@cache
def all_artefacts() -> tuple[Artefact, ...]:
    """The artefacts of all assets in the package ``assets``, each after its inputs."""
    modules = [import_module(f"{assets.__name__}.{module.name}") for module in iter_modules(assets.__path__)]
    ordered: dict[str, Artefact] = {}

    def add(artefact: Artefact) -> None:
        for one in artefact.inputs:
            add(one)
        ordered[artefact.name] = artefact

    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Artefact):
                add(value)
    return tuple(ordered.values())


def slide_artefacts() -> tuple[Artefact, ...]:
    """Artefacts with one partition per slide, each after its inputs."""
    return tuple(artefact for artefact in all_artefacts() if artefact.by_slide and not artefact.by_level)


def level_artefacts() -> tuple[Artefact, ...]:
    """Artefacts with one partition per level, each after its inputs."""
    return tuple(artefact for artefact in all_artefacts() if artefact.by_level and not artefact.by_slide)


def level_chain() -> tuple[Artefact, ...]:
    """The artefacts of a level without the optional ones, each after its inputs."""
    return tuple(artefact for artefact in level_artefacts() if not artefact.optional)
