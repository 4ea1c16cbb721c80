"""Every benchmark in turn: ``python -m wsi_assets_tests.benchmarks [NAME …] [--out FOLDER]``.

What they find is one table: printed, and written as ``bench.json`` and ``bench.md``. A missed bar is printed
as missed and is no failure; the exit status is 1 when a benchmark did not finish. They need a quiet machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wsi_assets_tests.benchmarks import rows

BENCHMARKS = ("bench_commands", "bench_patches", "bench_index", "bench_learning", "bench_control")


def measure(name: str, folder: Path) -> list[rows.Row] | None:
    """The rows of one benchmark, in a process of its own; None if it did not finish."""
    target = folder / f"{name}.json"
    print(f"{name} …", end=" ", file=sys.stderr, flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"wsi_assets_tests.benchmarks.{name}", "--json", str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    finished = done.returncode == 0 and target.exists()
    print(f"{time.monotonic() - started:.0f} s" if finished else "did not finish", file=sys.stderr)
    if not finished:
        print(done.stdout, file=sys.stderr)
    return rows.read(target) if finished else None


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for bench.json and bench.md")
    asked = parser.parse_args(words)
    if unknown := set(asked.names) - set(BENCHMARKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(name, Path(folder)) for name in asked.names or BENCHMARKS}
    unfinished = [name for name, measured in found.items() if measured is None]
    every = [row for measured in found.values() for row in measured or ()]
    # What something is asked of comes first; sorting keeps the order otherwise.
    every.sort(key=lambda row: row.met is None)
    on = rows.machine()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows.write(asked.out / "bench.json", every, machine=on, unfinished=unfinished)
    page = rows.markdown(every, on, unfinished)
    (asked.out / "bench.md").write_text(page, encoding="utf-8")
    print(rows.table(every))
    missed = sum(row.met is False for row in every)
    bars = sum(row.met is not None for row in every)
    print(f"\n{bars - missed} of {bars} bars met, {missed} missed. {page.splitlines()[0]}")
    print(f"Written to {(asked.out / 'bench.json').absolute()} and bench.md beside it.")
    if unfinished:
        print(f"Did not finish: {', '.join(unfinished)}")
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
