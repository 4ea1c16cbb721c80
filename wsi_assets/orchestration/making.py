"""One artefact of a level in the making: its options, and the result that carries its provenance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg

from wsi_assets.files import digest
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.config import COMMAND_LINE, ParameterSet, given_in, options_of
from wsi_assets.orchestration.io_managers import PROVENANCE
from wsi_assets.orchestration.storage import Record, StorageResource, recipe_of
from wsi_assets.slides.resolution import Resolution


class Making:
    """Opened at the start of an asset, closed with :meth:`result`.

    Args:
        config: what somebody gave in the Launchpad or on the command line; the file and the defaults say the
            rest. Given values are written to the file once the asset is made.
        inputs: what it is made from, where that is not the recorded versions of the artefact's inputs.
        level: of an asset of slides at levels, whose run may have several.

    Raises:
        ConfigError: the partition is no level or magnification, or a value is unknown or impossible.
        WsiAssetsError: a check that an input must pass has not passed.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        storage: StorageResource,
        artefact: Artefact,
        config: dg.Config | None = None,
        inputs: Mapping[str, Any] | None = None,
        level: str | None = None,
    ):
        self.context, self.storage, self.artefact = context, storage, artefact
        self.partition = level or (context.partition_key if artefact.by_level else None)
        if artefact.by_level:
            Resolution.parse(self.partition)
            for one in artefact.inputs:
                if one.must_pass:
                    storage.require_checked(one, self.partition)
        self._given = {} if config is None else given_in(artefact, config)
        given = ParameterSet({artefact.name: self._given} if self._given else {}, COMMAND_LINE)
        self.options: Any = options_of(artefact, self.partition, storage.parameters.read(), given)
        above = [one for one in artefact.inputs if one.by_level]
        recorded = {one.name: storage.version(one, self.partition) for one in above}
        self.inputs = recorded if inputs is None else dict(inputs)
        self.inputs |= storage.feedback(artefact, self.partition, self.parameters)
        self._started = time.monotonic()

    @property
    def resolution(self) -> Resolution:
        return Resolution.parse(self.partition)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.options.model_dump(mode="json")

    def keep_parameters(self) -> None:
        """Write the given values into ``parameters.yaml``."""
        for line in self.storage.parameters.remember(self.artefact, self.partition, self._given):
            self.context.log.info(line)

    def record(
        self,
        partition: str | None,
        inputs: Mapping[str, Any],
        facts: Mapping[str, Any],
        content: str | None = None,
    ) -> Record:
        """The provenance of what was made."""
        recipe = recipe_of(self.artefact, self.parameters, inputs)
        return Record(
            asset=self.artefact.name,
            partition=partition,
            code_version=self.artefact.code_version,
            parameters=self.parameters,
            inputs=dict(inputs),
            recipe=recipe,
            version=recipe if content is None else digest(recipe, content),
            facts=dict(facts),
            run_id=self.context.run.run_id,
        )

    def result(
        self,
        value: Any,
        *,
        facts: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        content: str | None = None,
    ) -> dg.MaterializeResult:
        """What the asset returns.

        Args:
            facts: small plain figures, kept in the record and shown in the UI.
            metadata: what only the UI shows.
            content: digest of what was made, where the same recipe does not give the same again.
        """
        seconds = round(time.monotonic() - self._started, 2)
        record = self.record(self.partition, self.inputs, {**facts, "seconds": seconds}, content)
        self.keep_parameters()
        return dg.MaterializeResult(
            value=value,
            # Pictures are what people look for first.
            metadata={
                **(metadata or {}),
                **{name: fact for name, fact in facts.items() if fact is not None},
                PROVENANCE: dg.MetadataValue.json(asdict(record)),
            },
            data_version=dg.DataVersion(record.version),
        )
