"""What a benchmark finds, one row a figure, and how rows are shown: terminal, Markdown, JSON.

What is measured, and how, is the benchmarks' own; a row holds both measured sides of its ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSIONS = (
    *("dagster", "numpy", "openslide-bin", "tifffile", "imagecodecs", "opencv-python", "shapely"),
    *("lmdb", "h5py", "torch", "torchvision"),
)
HEADER = ("what", "ours", "against", "ratio", "bar", "")


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        what: what was measured, and against what.
        ours: the product's figure, in ``unit``.
        against: the other side, measured in the same run; None where there is none.
        unit: of both, e.g. "patches/s" or "s".
        ratio: of the two, so that more is better unless the bar says otherwise; None where there is no other.
        bar: what is asked of ratio or figure, in words; None where nothing is.
        met: whether it is; None without a bar.
        note: what else was seen.
    """

    what: str
    ours: float
    unit: str
    against: float | None = None
    ratio: float | None = None
    bar: str | None = None
    met: bool | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as texts, in the order of ``HEADER``."""
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        return (
            self.what,
            f"{figure(self.ours)} {self.unit}",
            "" if self.against is None else f"{figure(self.against)} {self.unit}",
            "" if self.ratio is None else figure(self.ratio),
            self.bar or "",
            "; ".join(filter(None, (verdict, self.note))),
        )


def peak_memory() -> int:
    """Bytes of memory this process has had at most, from its own start.

    Not ``ru_maxrss``: that begins at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def at_least(what: str, ours: float, against: float, unit: str, bar: float, note: str = "") -> Row:
    """A rate that has to reach ``bar`` times another rate."""
    ratio = ours / against
    return Row(what, ours, unit, against, ratio, f"ratio >= {bar:g}", ratio >= bar, note)


def times_as_fast(what: str, ours: float, against: float, bar: float | None = None) -> Row:
    """Seconds, and the other side's, which has to take at least ``bar`` times as many where that is asked."""
    ratio = against / ours
    asked = (None, None) if bar is None else (f"ratio >= {bar:g}", ratio >= bar)
    return Row(what, ours, "s", against, ratio, *asked)


def below(what: str, ours: float, unit: str, bar: float, against: float | None = None, note: str = "") -> Row:
    """A figure that has to stay under ``bar``; what it is measured against is shown beside it."""
    ratio = None if against is None else ours / against
    return Row(what, ours, unit, against, ratio, f"< {bar:g} {unit}", ours < bar, note)


def figure(value: float) -> str:
    """Three digits, or all of those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def machine() -> dict[str, Any]:
    """What the figures hold for: processor, cores, load, versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def table(rows: Sequence[Row]) -> str:
    """For the terminal: aligned columns."""
    cells = [HEADER, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        left, *numbers, bar, verdict = (
            text.ljust(width) if place in (0, 4, 5) else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join([left, *numbers, bar, verdict]).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Row], on: dict[str, Any], unfinished: Sequence[str] = ()) -> str:
    """A page with the machine, the table, and what did not finish."""
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    lines = [
        f"{on['processor']}, {on['cores']} cores (load {on['load']} at the end), Python {on['python']}, "
        f"{versions}.",
        "",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in _with_rule(rows)),
    ]
    if unfinished:
        lines += ["", f"Did not finish: {', '.join(unfinished)}."]
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """The rows a benchmark wrote."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def write(path: Path, rows: Iterable[Row], **more: Any) -> None:
    """Rows as JSON, beside whatever else is to be kept."""
    stored = {**more, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser


def tell(rows: Sequence[Row], target: Path | None) -> None:
    """Print the table and write it where asked."""
    print(table(rows))
    if target:
        write(target, rows, machine=machine())


def _with_rule(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [HEADER, ("---", "---:", "---:", "---:", "---", "---"), *(row.cells() for row in rows)]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
