"""Extract patches from slides into a store, and read them from it.

What belongs here: the plan, the extraction engine, codecs, and one contract over three kinds of store. What
does not: choosing patches, splitting them, learning from them.

Names load on first use, so that importing the room, or only its options, costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "options": ("Backend", "Codec", "ExtractionOptions"),
    "plan": ("PatchPlan", "SlidePlan", "patch_key", "plan_patches"),
    "build": ("BuildReport", "build_store"),
    "store": ("STORE_NAMES", "PatchStore", "open_store"),
    "verify": ("VerifyReport", "verify_store"),
    "mosaic": ("mosaic_png",),
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
