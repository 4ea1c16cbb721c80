"""``Making``: options, inputs, timing and provenance record of one materialization."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg

from wsi_assets.files import digest
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.config import (
    LAUNCHPAD,
    ParameterSet,
    check_launchpad,
    given_in,
    options_of,
)
from wsi_assets.orchestration.io_managers import PROVENANCE
from wsi_assets.orchestration.storage import Record, StorageResource, recipe_of
from wsi_assets.slides.resolution import Resolution


class Making:
    """One materialization of an asset: created at the start of the asset, finished by :meth:`result`.

    Args:
        config: values from the Launchpad or the command line; all others come from ``parameters.yaml`` or are
            defaults. Given values are written to ``parameters.yaml`` once the asset is made.
        inputs: versions of the inputs, by default the recorded versions of the artefact's inputs.
        level: key of the level, for an asset of slides at levels, whose run may have several levels.

    Raises:
        ConfigError: the partition is no level or magnification, or a value is unknown or impossible.
        WsiAssetsError: a blocking check of an input has not passed.
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
        check_launchpad(context.run.run_config)
        self._given = {} if config is None else given_in(artefact, config)
        given = ParameterSet({artefact.name: self._given}, LAUNCHPAD)
        self.options: Any = options_of(artefact, self.partition, storage.parameters.read(), given)
        upstream = [one for one in artefact.inputs if one.by_level]
        recorded = {one.name: storage.version(one, self.partition) for one in upstream}
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
        """Write the values of ``config`` to ``parameters.yaml``."""
        for line in self.storage.parameters.remember(self.artefact, self.partition, self._given):
            self.context.log.info(line)

    def record(
        self,
        partition: str | None,
        inputs: Mapping[str, Any],
        facts: Mapping[str, Any],
        content: str | None = None,
    ) -> Record:
        """The provenance record of a partition; arguments as of :meth:`result`."""
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
        """The value that the asset returns to Dagster; also stores the given parameters.

        Args:
            facts: small plain values, stored in the record and shown in the UI.
            metadata: further entries for the UI.
            content: digest of the contents, for an artefact that is not reproducible.
        """
        seconds = round(time.monotonic() - self._started, 2)
        record = self.record(self.partition, self.inputs, {**facts, "seconds": seconds}, content)
        self.keep_parameters()
        return dg.MaterializeResult(
            value=value,
            # Pictures first: the UI keeps this order.
            metadata={
                **(metadata or {}),
                **{name: fact for name, fact in facts.items() if fact not in (None, {}, [])},
                PROVENANCE: dg.MetadataValue.json(asdict(record)),
            },
            data_version=dg.DataVersion(record.version),
        )
