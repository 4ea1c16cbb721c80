"""Train a tumor classifier on an index and its patches, then predict the test slides.

python -m wsi_assets.scripts.train --index_path index_level_4.pkl --lmdb_path patches_lmdb
"""

from __future__ import annotations

from pathlib import Path

from wsi_assets.index import load_index, save_index
from wsi_assets.learning import EpochRecord, PredictionOptions, TrainingOptions, predict, train
from wsi_assets.patches import open_store
from wsi_assets.scripts.command import add_options, bars_on_stderr, make_options, parser, run, say, warn


def main(arguments: list[str] | None = None) -> None:
    """Train a model, and predict the test slides with it."""
    args = parser(__doc__.split("\n")[0])
    args.add_argument("--index_path", type=Path, required=True, help="The index the patches were saved from.")
    args.add_argument(
        "--lmdb_path", type=Path, required=True, help="The patches: LMDB, HDF5 file or folder of PNG files."
    )
    args.add_argument(
        "--checkpoint_dir", type=Path, default=Path("checkpoints"), help="Folder of the models."
    )
    args.add_argument("--loss_csv", type=Path, default=Path("epoch_losses.csv"), help="Metrics by epoch.")
    args.add_argument(
        "--test_index", type=Path, default=Path("slide_index_test.pkl"), help="Test slides with predictions."
    )
    add_options(args, TrainingOptions)
    # Options of the same name mean the same in both classes.
    add_options(args, PredictionOptions, *TrainingOptions.model_fields)
    given = vars(args.parse_args(arguments))
    options = make_options(TrainingOptions, **given)
    prediction = make_options(PredictionOptions, **given)
    index = load_index(given["index_path"])
    with open_store(given["lmdb_path"]) as store, bars_on_stderr() as progress:
        result = train(
            store,
            index,
            options,
            given["checkpoint_dir"].parent,
            checkpoint_dir=given["checkpoint_dir"],
            loss_csv=given["loss_csv"],
            progress=progress,
            on_epoch=_say_epoch,
        )
        predictions = predict(store, index, result.best_path, prediction, progress=progress)
    for warning in result.warnings.values():
        warn(warning)
    save_index(given["test_index"], predictions)
    say(f"{result.best_path}: epoch {result.best.epoch}, validation loss {result.best.val_loss:.4f}")
    if predictions:
        patches = sum(len(entry["probs"]) for entry in predictions.values())
        say(f"{given['test_index']}: {patches} patches of {len(predictions)} test slides")
    else:
        warn("there are no test slides: no slide id contains 'test'")


def _say_epoch(record: EpochRecord) -> None:
    say(
        f"epoch {record.epoch}: train loss {record.train_loss:.4f}, accuracy {record.train_acc:.4f}, "
        f"validation loss {record.val_loss:.4f}, accuracy {record.val_acc:.4f}"
    )


if __name__ == "__main__":
    run(main)
