"""Evaluate predictions of test slides: metrics with intervals, FROC, heatmaps, and one report.

Names load on first use, so that importing the package, or only its options, costs nothing.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "options": ("EvaluationOptions",),
        "intervals": ("Metric",),
        "evaluation": ("Evaluation", "SlideEvaluation", "evaluate"),
        "report": ("ReportContext", "write_report"),
        "comparison": ("read_levels", "write_comparison"),
    },
)
