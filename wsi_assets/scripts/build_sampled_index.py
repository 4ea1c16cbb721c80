"""Subsample the normal patches of an index: ``index_level_N_sampled.pkl``.

python -m wsi_assets.scripts.build_sampled_index --index_file index_level_4.pkl
"""

from __future__ import annotations

from pathlib import Path

from wsi_assets.index import SamplingOptions, counts, load_index, sample_index, save_index, unknown_incomplete
from wsi_assets.scripts.command import add_options, make_options, parser, run, say, warn


def main(arguments: list[str] | None = None) -> None:
    """Sample an index; by default as many normal as tumor patches, without a split."""
    args = parser(__doc__.split("\n")[0])
    args.add_argument("--index_file", type=Path, required=True, help="An index, as build_index writes it.")
    args.add_argument(
        "--out_file", type=Path, help="The sampled index; None is <index_file>_sampled.pkl beside it."
    )
    add_options(args, SamplingOptions, normal_per_tumor=1.0, val_size=None)
    given = vars(args.parse_args(arguments))
    options = make_options(SamplingOptions, **given)
    index = load_index(given["index_file"])
    sampled = sample_index(index, options)
    for slide_id in unknown_incomplete(index, options):
        warn(f"{slide_id} is listed as incompletely annotated but is not in the index")
    out = given["out_file"] or given["index_file"].with_name(f"{given['index_file'].stem}_sampled.pkl")
    save_index(out, sampled)
    before, after = counts(index), counts(sampled)
    say(f"{out}: {after['tumor']} tumor and {after['normal']} of {before['normal']} normal patches")


if __name__ == "__main__":
    run(main)
