"""Parameters of assets: read from ``parameters.yaml``, changed in the Launchpad or with ``--set``.

    min_tissue: 0.3            # for every asset that has this parameter
    trained_model:             # for one asset
      max_epochs: 20
    levels:
      "4":                     # for one level; grouped by asset or not, as above
        patch_size: 128

The more specific value wins: one for a single asset over one for all assets, one for a level over one for all
levels. A value from the Launchpad or ``--set`` wins over the file.
"""

from __future__ import annotations

import difflib
import enum
import json
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pydantic
import yaml

from wsi_assets.errors import ConfigError
from wsi_assets.files import file_lock, publish_file
from wsi_assets.orchestration.artefact import Artefact, all_artefacts
from wsi_assets.slides.resolution import Resolution, words_of

COMMAND_LINE, LAUNCHPAD = "--set", "Launchpad"

_HEADER = """\
# The parameters of this cohort. Edit them here, or give values in the Launchpad or with --set, which are
# stored here. A parameter at the top applies to every asset that has it; group parameters by asset to set
# them for one, and by level under `levels`. All others have their defaults (docs/parameters.md). Comments of
# your own are lost when a value is stored.
"""

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def launchpad_config(artefact: Artefact) -> type[dg.Config]:
    """The Dagster config class of an asset: every option, empty, described with its bounds and default."""
    fields: dict[str, Any] = {}
    for name, option in artefact.options.model_fields.items():
        default = json.dumps(option.get_default(call_default_factory=True))
        empty = "Empty: the value in parameters.yaml or the default."
        description = f"{option.description or ''} {_bounds(option)}Default: {default}. {empty}"
        fields[name] = (
            typing.Optional[_launchpad_type(name, option.annotation)],  # noqa: UP045  (Dagster reads it)
            pydantic.Field(default=None, description=description.strip()),
        )
    title = "".join(word.title() for word in artefact.name.split("_"))
    return pydantic.create_model(
        f"{title}Config", __base__=dg.Config, __doc__=f"Parameters of ``{artefact.name}``.", **fields
    )


def given_in(artefact: Artefact, config: dg.Config) -> dict[str, Any]:
    """The options that are set in ``config``, as plain values."""
    values = {name: getattr(config, name) for name in artefact.options.model_fields}
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in values.items()
        if value is not None
    }


def check_launchpad(run_config: Mapping[str, Any]) -> None:
    """Check the values given for every asset of a run, before the first asset is made.

    Dagster's config types have no bounds, so a value out of bounds would otherwise fail hours later.

    Raises:
        ConfigError: a value is impossible.
    """
    for artefact in all_artefacts():
        config = run_config.get("ops", {}).get(artefact.name, {}).get("config", {})
        values = {name: value for name, value in config.items() if name in artefact.options.model_fields}
        ParameterSet({artefact.name: values}, LAUNCHPAD)


class ParameterSet:
    """Values by name, by asset and by level, checked against every asset's options.

    Args:
        content: mapping as shown at the top of this module; a key ``asset.name`` stands for ``name`` below
            ``asset``.
        source: file or other origin of the values, for error messages.

    Raises:
        ConfigError: a name is unknown or a value impossible; the message names the place.
    """

    def __init__(self, content: Any, source: str | Path | None = None):
        self.source = source
        self.content = self._mapping(content, "", "Write lines like `max_epochs: 2`")
        levels = self._mapping(self.content.pop("levels", None), "levels", 'Write lines like `"4":` below it')
        self._values: dict[tuple[str, str | None], dict[str, tuple[str, Any]]] = {}
        self._take(self.content, None, "")
        for level, values in levels.items():
            place = f"levels.{level}"
            try:
                Resolution.parse(level)
            except ConfigError as error:
                raise self._error(f"{place}: {error.fault}", error.remedy) from None
            levels[level] = self._mapping(values, place, "Write `patch_size: 128` below it")
            self._take(levels[level], level, f"{place}.")
        if levels:
            self.content["levels"] = levels
        for artefact in all_artefacts():
            for level in [None, *(levels if artefact.by_level else ())]:
                options_of(artefact, level, self)

    def values(self, artefact: Artefact, level: str | None) -> dict[str, tuple[str, Any]]:
        """Parameter -> (its place in the source, its value), for an asset at a level."""
        return {**self._values.get((artefact.name, None), {}), **self._values.get((artefact.name, level), {})}

    def fault(self, place: str, value: Any, error: pydantic.ValidationError) -> ConfigError:
        """The error for an impossible value."""
        return self._error(f"{place}={_short(value)} is not possible: {error.errors()[0]['msg']:.300}")

    def _take(self, layer: Mapping[str, Any], level: str | None, prefix: str) -> None:
        """Store the values of one layer (all levels, or one level) for each asset that has the parameter.

        Values for a single asset are stored last, so that they win.
        """
        by_name = {one.name: one for one in all_artefacts() if level is None or one.by_level}
        flat = {name: value for name, value in layer.items() if name.partition(".")[0] not in by_name}
        for name, value in flat.items():
            owners = [one for one in by_name.values() if name in one.options.model_fields]
            if not owners:
                raise self._unknown(prefix, name, level)
            for owner in owners:
                self._note(owner, level, name, prefix + name, value)
        for name in sorted(layer.keys() - flat.keys(), key=lambda name: "." not in name):
            asset, dot, field = name.partition(".")
            own = {field: layer[name]} if dot else layer[name]
            for inner, value in self._mapping(own, prefix + name, "Write its parameters below it").items():
                if inner not in by_name[asset].options.model_fields:
                    raise self._unknown(prefix, f"{asset}.{inner}", level)
                self._note(by_name[asset], level, inner, f"{prefix}{asset}.{inner}", value)

    def _note(self, artefact: Artefact, level: str | None, field: str, place: str, value: Any) -> None:
        self._values.setdefault((artefact.name, level), {})[field] = (place, value)

    def _mapping(self, value: Any, place: str, remedy: str) -> dict[str, Any]:
        if value is None and place:
            return {}
        if not isinstance(value, Mapping):
            raise self._error(f"{place} is not a mapping of parameters".lstrip(), remedy)
        return {str(name): inner for name, inner in value.items()}

    def _unknown(self, prefix: str, name: str, level: str | None) -> ConfigError:
        """The error for a parameter that does not exist at this place."""
        asset, _, field = name.rpartition(".")
        places = {
            field: f"{one.name}.{field}" if asset else field
            for one in sorted(all_artefacts(), key=lambda one: one.name == asset)
            for field in (one.name, *one.options.model_fields)
        }
        if level is not None and field in places and not asset:
            return self._error(
                f"{prefix}{name} is a parameter of slides, which are made once for all levels",
                "Move it out of `levels`",
            )
        close = difflib.get_close_matches(field, places, n=1)
        remedy = f"Did you mean {places[close[0]]!r}?" if close else "See docs/parameters.md"
        return self._error(f"there is no parameter {_short(prefix + name)}", remedy)

    def _error(self, fault: str, remedy: str | None = None) -> ConfigError:
        if isinstance(self.source, str):
            return ConfigError(f"{self.source}: {fault}", remedy=remedy)
        return ConfigError(fault, path=self.source, remedy=remedy)


def options_of(artefact: Artefact, level: str | None, *sets: ParameterSet) -> pydantic.BaseModel:
    """The options of an asset at a level (None: all levels) after applying ``sets``; later sets win.

    Raises:
        ConfigError: a value is impossible.
    """
    found: dict[str, tuple[ParameterSet, str, Any]] = {}
    for one in sets:
        found.update(
            {name: (one, place, value) for name, (place, value) in one.values(artefact, level).items()}
        )
    values = {name: _plain(artefact, name, value) for name, (_, _, value) in found.items()}
    try:
        return artefact.options(**values)
    except pydantic.ValidationError as error:
        place = error.errors()[0]["loc"]
        field = place[0] if place and place[0] in found else next(iter(found))
        owner, where, value = found[field]
        raise owner.fault(where, value, error) from None


class ParameterFile:
    """``parameters.yaml`` of a storage folder; a missing file means all defaults."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> ParameterSet:
        """The parameters in the file.

        Raises:
            ConfigError: the file cannot be read, or a name is unknown or a value impossible.
        """
        return read_parameters(self.path) if self.path.exists() else ParameterSet({}, self.path)

    def changes(self, artefact: Artefact, level: str | None, given: Mapping[str, Any]) -> list[str]:
        """One line for each given value that differs from the value in effect."""
        where = words_of(level) if artefact.by_level and level is not None else "all levels"
        return [
            f"{self.path.name}: {artefact.name}.{name} of {where} is {value!r}, was {before!r}"
            for name, (before, value) in _changed(self.read(), artefact, level, given).items()
        ]

    def remember(self, artefact: Artefact, level: str | None, given: Mapping[str, Any]) -> list[str]:
        """Write the given values that differ to the file; returns the lines of :meth:`changes`."""
        if not given or not self.changes(artefact, level, given):
            return []
        # Runs of several levels may write at the same time.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path.with_name(".parameters.lock"), wait=True):
            lines, current = self.changes(artefact, level, given), self.read()
            if lines:
                changed = {name: to for name, (_, to) in _changed(current, artefact, level, given).items()}
                layer = current.content
                if artefact.by_level and level is not None:
                    layer = layer.setdefault("levels", {}).setdefault(level, {})
                layer[artefact.name] = {**(layer.get(artefact.name) or {}), **changed}
                with publish_file(self.path) as unfinished:
                    text = yaml.safe_dump(current.content, sort_keys=False, allow_unicode=True)
                    unfinished.write_text(_HEADER + text, encoding="utf-8")
        return lines


def _changed(
    current: ParameterSet, artefact: Artefact, level: str | None, given: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Parameter -> (value in effect, given value), where these differ."""
    over = ParameterSet({artefact.name: dict(given)} if given else {}, COMMAND_LINE)
    before, after = (
        options_of(artefact, level, *sets).model_dump(mode="json") for sets in ((current,), (current, over))
    )
    return {name: (before[name], after[name]) for name in given if after[name] != before[name]}


def read_parameters(path: str | Path) -> ParameterSet:
    """Read a YAML file of parameters.

    Raises:
        ConfigError: it cannot be read, or a name is unknown or a value impossible.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror})", path=path, remedy="Check its permissions"
        ) from error
    except Exception as error:  # on invalid YAML the parser raises many kinds of errors
        raise ConfigError(f"cannot be read ({error!s:.200})", path=path) from error
    return ParameterSet({} if content is None else content, Path(path))


def parse_settings(pairs: list[str]) -> ParameterSet:
    """``["lr=0.01", "patch_store.backend=hdf5"]`` as parameters; values are YAML scalars or lists.

    Raises:
        ConfigError: a pair is not ``key=value``, a name is unknown or a value impossible.
    """
    content: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--set {_short(pair)} is not key=value", remedy="Write for example --set max_epochs=2"
            )
        try:
            content[name.strip()] = yaml.safe_load(text) if text.strip() else ""
        except Exception as error:  # as above
            raise ConfigError(f"--set {_short(pair)} cannot be read ({error!s:.200})") from error
    return ParameterSet(content, COMMAND_LINE)


def _launchpad_type(name: str, annotation: Any) -> Any:
    """The type of an option as Dagster's config supports it: a ``Literal`` becomes an enumeration."""
    choices = _without_none(annotation)
    if typing.get_origin(choices) is typing.Literal:
        return enum.Enum(name, {str(choice): choice for choice in typing.get_args(choices)})
    return choices


def _bounds(option: pydantic.fields.FieldInfo) -> str:
    """The bounds of an option in words, because Dagster's config types cannot express them."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{word} {getattr(bound, name):g}"
        for bound in option.metadata
        for name, word in words.items()
        if isinstance(getattr(bound, name, None), (int, float))
    ]
    return f"{' and '.join(found).capitalize()}. " if found else ""


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = [one for one in typing.get_args(annotation) if one is not type(None)]
    return annotation


def _plain(artefact: Artefact, name: str, value: Any) -> Any:
    """The value, with the text ``none`` as None for an option that may be None and is not a string."""
    option = artefact.options.model_fields.get(name)
    if option is None or not isinstance(value, str) or value.lower() != "none":
        return value
    kind = _without_none(option.annotation)
    return None if kind is not option.annotation and kind is not str else value


def _short(value: Any) -> str:
    # `repr` could be endless: with aliases, a few lines of YAML can repeat one list a million times.
    try:
        return _BRIEF.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return "a number"
