"""Run every benchmark, one after the other: ``python -m wsi_assets_tests.benchmarks [--json FILE]``.

Each prints its table and its bars; a missed bar is printed as missed. They need a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

BENCHMARKS = ("bench_index", "bench_patches", "bench_learning")
VERSIONS = ("numpy", "opencv-python", "imagecodecs", "lmdb", "h5py", "shapely", "torch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the figures go")
    target = parser.parse_args().json
    results = {}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in BENCHMARKS:
            print(f"\n== {name}", flush=True)
            part = Path(folder) / f"{name}.json"
            done = subprocess.run(
                [sys.executable, "-m", f"wsi_assets_tests.benchmarks.{name}", "--json", str(part)],
                check=False,
            )
            if done.returncode or not part.exists():
                failed.append(name)
            else:
                results[name] = json.loads(part.read_text())
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    target.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    print(f"\nfigures: {target.absolute()}")
    if failed:
        print(f"did not finish: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
