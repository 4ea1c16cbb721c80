"""Judge the predictions of test slides: figures with intervals, FROC, heatmaps, and one report.

What belongs here: whatever follows from predictions and outlines. What does not: making predictions, and
reading outlines or slides (pixels are asked of ``slides`` for pictures only).

Names load on first use, so that importing the room, or only its options, costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "options": ("EvaluationOptions",),
    "figures": ("Figure",),
    "evaluation": ("Evaluation", "SlideEvaluation", "evaluate"),
    "report": ("ReportContext", "write_report"),
    "comparison": ("compare", "write_comparison"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
