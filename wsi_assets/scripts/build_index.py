"""Index the tissue patches of a folder of slides: ``index_level_N.pkl`` or ``index_10x.pkl`` for each target.

python -m wsi_assets.scripts.build_index --images_dir images --annotations_dir annotations --target_level 4
"""

from __future__ import annotations

from pathlib import Path

from wsi_assets.annotations import AnnotationOptions
from wsi_assets.errors import SlideIndexError
from wsi_assets.index import IndexOptions, TissueOptions, build_indices, counts, save_index
from wsi_assets.scripts.command import add_options, bars_on_stderr, make_options, parser, run, say, warn
from wsi_assets.slides import ScaleOptions
from wsi_assets.slides.resolution import name_of, words_of


def main(arguments: list[str] | None = None) -> None:
    """Build the indices that the arguments ask for."""
    args = parser(__doc__.split("\n")[0])
    args.add_argument("--images_dir", default="images", help="Folder of slides.")
    args.add_argument(
        "--annotations_dir",
        default="annotations",
        help="Folder of annotations; 'none' if there are no annotations.",
    )
    args.add_argument("--level", type=int, default=7, help="Low-resolution level for tissue detection.")
    args.add_argument(
        "--target_level", type=int, nargs="+", help="Levels of the patches; 0 to 6 if no target is given."
    )
    args.add_argument(
        "--target_mag", type=float, nargs="+", default=[], help="Magnifications of the patches, e.g. 10."
    )
    args.add_argument(
        "--target_mpp", type=float, nargs="+", default=[], help="Pixel sizes of the patches in um, e.g. 0.5."
    )
    args.add_argument("--out_dir", type=Path, default=Path(), help="Folder for index_level_N.pkl.")
    add_options(args, IndexOptions)
    add_options(args, TissueOptions, "work_level")
    add_options(args, ScaleOptions)
    add_options(args, AnnotationOptions)
    given = vars(args.parse_args(arguments))
    given["work_level"] = given["level"]
    targets = given["target_level"] or []
    targets += [f"{one:g}x" for one in given["target_mag"]] + [f"{one:g}um" for one in given["target_mpp"]]
    annotations_dir = given["annotations_dir"]
    with bars_on_stderr() as progress:
        found = build_indices(
            given["images_dir"],
            None if annotations_dir.lower() in ("", "none") else annotations_dir,
            targets or [*range(7)],
            tissue=make_options(TissueOptions, **given),
            annotation=make_options(AnnotationOptions, **given),
            options=make_options(IndexOptions, **given),
            scale=make_options(ScaleOptions, **given),
            progress=progress,
        )
    for line in found.notices:
        warn(line)
    for slide_id, reason in found.left_out.items():
        warn(f"{slide_id} is left out: {reason}")
    given["out_dir"].mkdir(parents=True, exist_ok=True)
    for level, index in found.levels.items():
        path = given["out_dir"] / f"index_{name_of(str(level))}.pkl"
        save_index(path, index.index)
        for slide_id, reason in {**index.left_out, **index.empty}.items():
            warn(f"{slide_id} has no patch at {words_of(level)}: {reason}")
        say(f"{path}: {_sizes(counts(index.index))}")
    for reason in found.missing.values():
        warn(reason)
    if not found.levels:
        raise SlideIndexError("no index was made", remedy="Choose a level that the slides have")


def _sizes(numbers: dict[str, int]) -> str:
    classes = f"{numbers['tumor']} tumor, {numbers['normal']} normal"
    if numbers["partial"]:
        classes += f", {numbers['partial']} of neither class"
    return f"{numbers['slides']} slides, {numbers['patches']} patches ({classes})"


if __name__ == "__main__":
    run(main)
