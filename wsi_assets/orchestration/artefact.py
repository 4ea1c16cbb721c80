"""One description an asset: its name, options, code version, artefact and inputs stand together, once.

Each module of ``assets`` opens with the descriptions of its assets; paths, provenance, parameters, checks and
the command line read them.
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
"""One group of all assets: the UI opens its graph expanded; of several it shows closed boxes."""


class NoOptions(BaseModel):
    """Of an asset that has nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Artefact:
    """What an asset stores and how it is made.

    Attributes:
        name: the asset's.
        code_version: raise it when a change of code changes what the artefact holds.
        path: below the storage folder, with ``{slide}``, ``{level}`` or both for an asset of slides, of
            levels or of slides at levels; of level 4 it is ``level_4``, of the magnification 10x ``10x``.
        options: the domain's option class; its fields are the asset's parameters.
        inputs: the artefacts it is made from.
        feedback: parameter -> name of an artefact of the same level that is made from this one and read again
            while the parameter is on, as the last round left it; a graph has no circles.
        sources: the user's files it is made from: ``slide_image``, ``slide_annotation``.
        main_file: the file without which the folder at ``path`` is nothing; None where ``path`` is a file.
        without_effect: parameters that change how fast or on what it is made, or what is checked.
        may_name_a_file: parameters whose value may be a file: what the file holds counts, not where it lies.
        optional: it is made only when asked for by name, and what it is an input of is also made without it.
        reproducible: the same recipe gives the same bytes. A model trained twice is not the same model.
        must_pass: names of its checks that must have passed before anything is made from it.
        shown: facts that the command line prints.
        automation: time zone -> when it is made without being asked for; None is never.
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
        """Whether it is made from the regions of all slides."""
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
        """What ``@dg.asset`` needs to know of it; IO managers find ``path`` in the asset's metadata."""
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
    """Every asset's description in the package ``assets``, in the order in which they are made."""
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
    """The assets of a slide alone, in the order in which they are made."""
    return tuple(artefact for artefact in all_artefacts() if artefact.by_slide and not artefact.by_level)


def level_artefacts() -> tuple[Artefact, ...]:
    """The assets of a level alone, in the order in which they are made."""
    return tuple(artefact for artefact in all_artefacts() if artefact.by_level and not artefact.by_slide)


def level_chain() -> tuple[Artefact, ...]:
    """Those of them that every level has."""
    return tuple(artefact for artefact in level_artefacts() if not artefact.optional)
