"""Judge the predictions of test slides: figures with intervals, FROC, heatmaps, and one report.

What belongs here: whatever follows from predictions and outlines. What does not: making predictions, and
reading outlines or slides (pixels are asked of ``slides`` for pictures only).

Names load on first use, so that importing the room, or only its options, costs nothing.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "options": ("EvaluationOptions",),
        "figures": ("Figure",),
        "evaluation": ("Evaluation", "SlideEvaluation", "evaluate"),
        "report": ("ReportContext", "write_report"),
        "comparison": ("compare", "write_comparison"),
    },
)
