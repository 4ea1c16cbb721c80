"""Launchpad configuration of each asset: the rooms' own options, nothing added but Dagster's base class.

Names, defaults, bounds and descriptions have one home, the ``options`` module of the room that uses them.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pydantic
import yaml

from wsi_assets.annotations.options import AnnotationOptions
from wsi_assets.errors import ConfigError
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.index.options import IndexOptions, SamplingOptions, TissueOptions
from wsi_assets.learning.options import PredictionOptions, TrainingOptions
from wsi_assets.patches.options import ExtractionOptions
from wsi_assets.slides.options import ScaleOptions


class TissueConfig(dg.Config, TissueOptions, ScaleOptions):
    """Parameters of ``tissue_regions``."""


class AnnotationConfig(dg.Config, AnnotationOptions):
    """Parameters of ``annotation_regions``."""


class IndexConfig(dg.Config, IndexOptions):
    """Parameters of ``slide_index``."""


class SamplingConfig(dg.Config, SamplingOptions):
    """Parameters of ``sampled_index``."""


class ExtractionConfig(dg.Config, ExtractionOptions):
    """Parameters of ``patch_store``."""


class TrainingConfig(dg.Config, TrainingOptions):
    """Parameters of ``trained_model``."""


class PredictionConfig(dg.Config, PredictionOptions):
    """Parameters of ``test_predictions``."""


class EvaluationConfig(dg.Config, EvaluationOptions):
    """Parameters of ``evaluation``."""


ASSET_CONFIG: dict[str, type[dg.Config]] = {
    "tissue_regions": TissueConfig,
    "annotation_regions": AnnotationConfig,
    "slide_index": IndexConfig,
    "sampled_index": SamplingConfig,
    "patch_store": ExtractionConfig,
    "trained_model": TrainingConfig,
    "test_predictions": PredictionConfig,
    "evaluation": EvaluationConfig,
}
"""Asset -> its configuration class, in pipeline order."""

_UNREADABLE = (
    *(yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError),
)
"""What YAML's reader raises on text that is no YAML; faults of dates and numbers it does not translate."""

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def parameters(config: dg.Config) -> dict[str, Any]:
    """The effective parameters as plain values."""
    return config.model_dump(mode="json")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["lr=0.01", "tta=true"]`` -> values, read as YAML scalars or lists.

    Raises:
        ConfigError: a pair is not ``key=value``.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--set {_short(pair)} is not key=value", remedy="Write for example --set max_epochs=2"
            )
        try:
            values[name.strip()] = _number(yaml.safe_load(text)) if text.strip() else ""
        except _UNREADABLE as error:
            raise ConfigError(f"--set {_short(pair)} cannot be read ({error!s:.200})") from error
    return values


def read_config_file(path: str) -> dict[str, Any]:
    """A YAML file of parameters, flat or grouped by asset, as flat names or ``asset.name``.

    Raises:
        ConfigError: the file cannot be read or is not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise ConfigError("does not exist", path=path, remedy="Check the path") from error
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror})", path=path, remedy="Check its permissions"
        ) from error
    except _UNREADABLE as error:
        raise ConfigError(f"cannot be read ({error!s:.200})", path=path) from error
    if not isinstance(content, dict):
        raise ConfigError(
            "is not a mapping of parameters", path=path, remedy="Write lines like `max_epochs: 2`"
        )
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name in ASSET_CONFIG and isinstance(value, dict):
            values.update({f"{name}.{inner}": _number(entry) for inner, entry in value.items()})
        else:
            values[str(name)] = _number(value)
    return values


def build_configs(values: Mapping[str, Any]) -> dict[str, dg.Config]:
    """Every asset's validated configuration from flat values.

    A flat name sets the parameter on every asset that has it; ``asset.name`` on that asset only.

    Raises:
        ConfigError: a name is unknown or a value impossible, in one line.
    """
    chosen: dict[str, dict[str, Any]] = {asset: {} for asset in ASSET_CONFIG}
    for name, value in sorted(values.items(), key=lambda item: "." in item[0]):
        asset, dot, field = name.rpartition(".")
        takers = [asset] if dot else list(ASSET_CONFIG)
        takers = [a for a in takers if a in ASSET_CONFIG and field in ASSET_CONFIG[a].model_fields]
        if not takers:
            raise ConfigError(f"there is no parameter {_short(name)}", remedy=_suggestion(name))
        for taker in takers:
            chosen[taker][field] = value
    return {asset: _validated(asset, given) for asset, given in chosen.items()}


def run_config(configs: Mapping[str, dg.Config], assets: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """The Dagster run configuration that gives ``assets`` these parameters."""
    return {"ops": {asset: {"config": parameters(configs[asset])} for asset in assets}}


def _validated(asset: str, given: dict[str, Any]) -> dg.Config:
    try:
        return ASSET_CONFIG[asset](**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][:1]) or next(iter(given))
        raise ConfigError(
            f"{field}={_short(given.get(field))} is not possible: {first['msg']:.300}"
        ) from error


def _short(value: Any) -> str:
    # Not `repr`: a few lines of YAML can name one list a million times, and nest deeper than Python goes.
    try:
        return _BRIEF.repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return "a number"


def _suggestion(name: str) -> str:
    asset, dot, field = name.rpartition(".")
    takers = {asset: sorted(config.model_fields) for asset, config in ASSET_CONFIG.items()}
    known = sorted({name for names in takers.values() for name in names})
    # What the user's own asset has comes first: it is the more likely to be meant.
    close = [
        *difflib.get_close_matches(field, takers.get(asset, []), n=1),
        *difflib.get_close_matches(field, known, n=1),
    ]
    if not close:
        return "The README lists every parameter"
    if not dot:
        return f"Did you mean {close[0]!r}?"
    owners = [owner for owner, names in takers.items() if close[0] in names]
    owner = difflib.get_close_matches(asset, owners, n=1, cutoff=0.0)[0]
    return f"Did you mean '{owner}.{close[0]}'?"


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as text, and everybody writes a learning rate like that.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
