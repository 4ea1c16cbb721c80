"""One number of a report with its interval, or the reason why there is none.

How a number is computed does not belong here; see the module of its metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A number, its 95 % interval, and why either is missing.

    ``value`` is None when the number cannot be computed: never 0.0, never nan. ``reason`` says why the
    value, or where there is a value its interval, is missing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def __post_init__(self):
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a figure is a finite number or None, not {number}")
        if (self.value is None or self.low is None) and not self.reason:
            raise ValueError("a figure without a value or an interval says why")

    @classmethod
    def missing(cls, reason: str) -> Figure:
        return cls(None, reason=reason)

    def to_plain(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "reason": self.reason}

    def __str__(self) -> str:
        if self.value is None:
            return f"not available: {self.reason}"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"
