"""Evaluate predictions of test slides: metrics with intervals, FROC, heatmaps and a report.

Names are imported on first use, so importing this package or its options loads no numerical library.
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
