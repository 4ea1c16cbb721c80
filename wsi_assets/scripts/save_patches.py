"""Extract the patches of an index from their slides into a folder of PNG files, an LMDB or an HDF5 file.

python -m wsi_assets.scripts.save_patches --index_file index_level_4.pkl --backend lmdb
"""

from __future__ import annotations

from pathlib import Path

from wsi_assets.index import load_index
from wsi_assets.patches import ExtractionOptions, build_store, plan_patches
from wsi_assets.scripts.command import add_options, bars_on_stderr, make_options, parser, run, say, warn


def main(arguments: list[str] | None = None) -> None:
    """Extract and store the patches of an index."""
    args = parser(__doc__.split("\n")[0])
    args.add_argument("--index_file", type=Path, required=True, help="A slide index.")
    args.add_argument(
        "--patch_size",
        type=int,
        help="Patch size, for an index that does not state it; None is that of the index, else 256.",
    )
    args.add_argument("--backend", choices=["fs", "lmdb", "hdf5"], default="lmdb", help="Kind of store.")
    args.add_argument("--out_dir", type=Path, default=Path("image_patches"), help="Folder of PNG files (fs).")
    args.add_argument("--lmdb_path", type=Path, default=Path("patches_lmdb"), help="LMDB environment (lmdb).")
    args.add_argument("--hdf5_path", type=Path, default=Path("patches.h5"), help="HDF5 file (hdf5).")
    add_options(args, ExtractionOptions)
    given = vars(args.parse_args(arguments))
    options = make_options(ExtractionOptions, **given)
    path = {"fs": given["out_dir"], "lmdb": given["lmdb_path"], "hdf5": given["hdf5_path"]}[given["backend"]]
    plan = plan_patches(load_index(given["index_file"]), options, patch_size=given["patch_size"])
    with bars_on_stderr() as progress:
        report = build_store(plan, path.absolute(), given["backend"], progress=progress)
    for row in report.quarantined:
        warn(f"not stored: {row['key']}: {row['reason']}")
    say(f"{path}: {report.patches} patches ({report.tumor} tumor), {report.decoded} read from slides")


if __name__ == "__main__":
    run(main)
