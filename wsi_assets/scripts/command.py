"""What the four commands share: arguments made from option classes, progress bars, one-line errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, get_args, get_origin

import pydantic

from wsi_assets.errors import ConfigError, WsiAssetsError, one_line
from wsi_assets.files import disk_fault
from wsi_assets.progress import Progress, progress_bars
from wsi_assets.running import as_command

Options = TypeVar("Options", bound=pydantic.BaseModel)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows every default."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def add_options(
    to: argparse.ArgumentParser, kind: type[pydantic.BaseModel], *without: str, **defaults: Any
) -> None:
    """Add an argument for each field of an option class, with its name, description and default.

    Args:
        without: fields without an argument.
        defaults: field -> default of this command, if it differs from that of the class.
    """
    group = to.add_argument_group(f"{kind.__name__}")
    for name, field in kind.model_fields.items():
        if name not in without:
            optional = type(None) in get_args(field.annotation)
            group.add_argument(
                f"--{name}",
                # Numbers and choices stay text, which pydantic converts.
                type=_none_or_text if optional else str,
                nargs="*" if get_origin(field.annotation) is list else None,
                metavar="VALUE",
                default=defaults.get(name, field.get_default(call_default_factory=True)),
                help=(field.description or "").replace("%", "%%"),
            )


def make_options(kind: type[Options], **values: Any) -> Options:
    """Options of a class from the arguments that are its fields.

    Raises:
        ConfigError: a value is impossible.
    """
    try:
        return kind(**{name: value for name, value in values.items() if name in kind.model_fields})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "the options"
        raise ConfigError(f"{name}={values.get(name)!r:.60} is not valid: {first['msg']:.300}") from error


def run(main: Callable[[], None]) -> None:
    """Run a command; an error of the user is printed as one line, with status 1."""
    with as_command():
        try:
            main()
        except WsiAssetsError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            fault = disk_fault(error, "the output")
            sys.exit(f"error: {fault if fault is not None else one_line(error)}")


def bars_on_stderr() -> AbstractContextManager[Progress]:
    """Progress bars on stderr, so that results on stdout can be piped."""
    from rich.console import Console

    return progress_bars(Console(stderr=True, highlight=False))


def say(line: object) -> None:
    """Print a line of the result."""
    print(line, flush=True)


def warn(line: object) -> None:
    """Print a warning on stderr."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _none_or_text(text: str) -> str | None:
    return None if text.lower() == "none" else text
