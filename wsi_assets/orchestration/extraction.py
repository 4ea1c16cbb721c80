"""The seam between the patch_store asset, which reads and encodes patches, and its IO manager, which stores
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def extract(plan: Any, path: Path, backend: str, executor: Any, progress: Any) -> Any:
    from wsi_assets.patches import build_store

    return build_store(plan, path, backend, executor=executor, progress=progress)


def write_extracted(extracted: Any, path: Path, backend: str) -> Any:
    return extracted
