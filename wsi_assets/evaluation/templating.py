"""The templates' environment: escaping always on, and how numbers are written for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_AVAILABLE = "not available"


def environment():
    """A jinja2 environment over this room's ``templates`` folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=PackageLoader("wsi_assets.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(number=number, count=count, duration=duration, cell=cell, heading=heading)
    env.globals.update(plain=plain)
    return env


def number(value: float | None, digits: int = 3) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def cell(value: Any) -> str:
    """Any table cell: integers with separators, floats with what a reader needs, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if 0 < abs(value) < 0.001:  # a learning rate of 0.0001 is not 0.000
            return f"{value:.3g}"
        if abs(value) >= 1:  # a magnification of 20 is not 20.000
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return f"{value:.3f}"
    return str(value)


def heading(name: str) -> str:
    """A column's name for a reader: ``tumor_patches`` is Tumour patches."""
    return name.replace("_", " ").replace("tumor", "tumour").strip().capitalize()


def plain(figure: Any) -> Mapping[str, Any]:
    """A figure, or its plain form from ``metrics.json``, as its plain form."""
    return figure if isinstance(figure, Mapping) else figure.to_plain()
