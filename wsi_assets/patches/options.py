"""Options of patch extraction."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Codec = Literal["jpeg", "png"]
Backend = Literal["lmdb", "hdf5", "fs"]


class ExtractionOptions(BaseModel):
    """How patches are read, encoded and stored.

    ``codec`` applies to LMDB stores. A PNG folder always holds PNG, and an HDF5 store the pixels themselves,
    so both are lossless.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    codec: Codec = Field(
        "jpeg",
        description="Encoding of patches in an LMDB store: jpeg (lossy, a quarter of the size, ten times as "
        "fast) or png (lossless).",
    )
    jpeg_quality: int = Field(
        95, ge=1, le=100, description="JPEG quality of the jpeg codec; color is never subsampled (4:4:4)."
    )
    extraction_workers: int = Field(
        0,
        ge=0,
        description="Processes that read and encode patches; 0 means one per CPU core.",
    )
    max_no_data: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Largest share of a patch that the slide may have no pixels for (not scanned, missing "
        "tile), which are then white; a patch with a larger share is quarantined.",
    )
    max_quarantined: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Largest share of patches that may be unreadable before a check fails. Above 0, five "
        "patches are allowed in any case, or a tenth of a store of less than 50.",
    )

    def allowed_unreadable(self, patches: int) -> int:
        """How many of ``patches`` patches may be unreadable before a check fails."""
        return int(max(self.max_quarantined * patches, min(5, patches / 10) if self.max_quarantined else 0))

    def encoding(self, backend: Backend) -> tuple[str, int | None]:
        """(codec, JPEG quality or None) of the patches in a store of this kind."""
        codec = {"fs": "png", "hdf5": "pixels"}.get(backend, self.codec)
        return codec, self.jpeg_quality if codec == "jpeg" else None
