"""The command ``wsi-assets``, whose runs are recorded in the Dagster instance that the UI shows.

Large modules are imported only when a command needs them, so that ``--help`` is fast.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_assets import __version__
from wsi_assets.errors import FAILED, USAGE, WsiAssetsError
from wsi_assets.running import as_command, loading

if TYPE_CHECKING:
    from wsi_assets.orchestration.settings import Settings

FOLDER = click.Path(file_okay=False, path_type=Path)
FOLDERS = ("images", "annotations", "storage")


@contextmanager
def _usage_status() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        error.exit_code = USAGE
        raise


class OneLineErrors(click.Group):
    """Shows errors that a user can correct as one line; other exceptions keep their traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _usage_status():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            # Users need not know which features Dagster calls beta or preview.
            with as_command(), _usage_status(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* is currently in (beta|preview)")
                return super().invoke(ctx)
        except WsiAssetsError as error:
            fault = error
        except Exception as error:
            from wsi_assets.files import disk_fault

            fault = disk_fault(error, "the storage folder or DAGSTER_HOME")
            if fault is None:
                raise
        click.secho(f"error: {fault}", fg="red", err=True)
        return ctx.exit(FAILED)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsi-assets")
def main() -> None:
    """From whole-slide images and tumor annotations to an evaluated tumor detector."""


def folders(command: Any) -> Any:
    """Decorator that adds the folder options; the command gets them as its argument ``settings``."""

    @functools.wraps(command)
    def with_settings(
        images: Path | None,
        annotations: Path | None,
        storage: Path | None,
        cohort: Path | None,
        **others: Any,
    ) -> Any:
        from wsi_assets.orchestration.settings import Settings

        given = {
            "WSI_IMAGES_DIR": images,
            "WSI_ANNOTATIONS_DIR": annotations,
            "WSI_STORAGE_DIR": storage,
            "WSI_COHORT": cohort,
        }
        named = {name: str(value) for name, value in given.items() if value is not None}
        return command(settings=Settings.from_environment({**os.environ, **named}), **others)

    what = "Table of facts about slides.  [WSI_COHORT or cohort.csv in the folder of slides]"
    with_settings = click.option("--cohort", type=click.Path(path_type=Path), help=what)(with_settings)
    for names, what in (
        (FOLDERS[2], "Folder for all results.  [WSI_STORAGE_DIR or storage/]"),
        (FOLDERS[1], "Folder of annotations.  [WSI_ANNOTATIONS_DIR or annotations/]"),
        (FOLDERS[0], "Folder of slides.  [WSI_IMAGES_DIR or images/]"),
    ):
        with_settings = click.option(f"--{names}", type=FOLDER, help=what)(with_settings)
    return with_settings


def scales(*, several: bool) -> Callable[[Any], Any]:
    """Decorator that adds --level, --mag and --mpp; the command gets their keys as its argument ``levels``.

    Args:
        several: whether more than one level may be given.
    """

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def with_levels(
            level: tuple[int, ...], mag: tuple[float, ...], mpp: tuple[float, ...], **others: Any
        ) -> Any:
            from wsi_assets.slides.resolution import Resolution

            keys = [*map(str, level), *(f"{one:g}x" for one in mag), *(f"{one:g}um" for one in mpp)]
            if not keys or (len(keys) > 1 and not several):
                raise click.UsageError("give one of --level, --mag and --mpp")
            return command(levels=[Resolution.parse(key).key for key in dict.fromkeys(keys)], **others)

        again = "; repeatable" if several else ""
        for name, kind, what in (
            ("mpp", float, "Pixel size in um, the same for every scanner"),
            ("mag", float, "Magnification; 10 is a pixel size of 1 um for every scanner"),
            ("level", int, "Pyramid level"),
        ):
            with_levels = click.option(f"--{name}", type=kind, multiple=True, help=f"{what}{again}.")(
                with_levels
            )
        return with_levels

    return decorate


@main.command()
@scales(several=True)
@click.option("--upto", default="evaluation", show_default=True, help="The last asset to make.")
@folders
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set one parameter; repeatable.")
@click.option("--backend", type=click.Choice(["lmdb", "hdf5", "fs"]), help="As --set patch_store.backend=…")
@click.option(
    "--annotations-gone",
    is_flag=True,
    help="Accept that most annotations, or corrections, were removed for good.",
)
@click.option("--no-test", is_flag=True, help="There are no test slides: stop after training.")
@click.option(
    "--accept",
    multiple=True,
    metavar="SLIDE",
    help="Accept a slide whose name contradicts its annotation, which counts; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be made, and why; make nothing.")
def run(
    levels: list[str],
    upto: str,
    settings: Settings,
    pairs: tuple[str, ...],
    backend: str | None,
    annotations_gone: bool,
    no_test: bool,
    accept: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Register the slides, then make what is missing or out of date, level by level.

    Parameters are read from parameters.yaml in the storage folder; values given here are used and written
    there. Exit status: 0 if the run finished, even if checks failed; 2 if it finished but left slides out; 1
    if it failed; 64 if the command line is invalid.
    """
    with loading(workers=not dry_run):
        from wsi_assets.console import print_plan, run_and_report
        from wsi_assets.orchestration.cli_run import accepted_slides
        from wsi_assets.orchestration.config import parse_settings

    if backend:
        pairs = (*pairs, f"patch_store.backend={backend}")
    if accept:
        pairs = (*pairs, f"accepted_slides={json.dumps([*accepted_slides(settings, levels), *accept])}")
    given = parse_settings(list(pairs))
    if dry_run:
        sys.exit(print_plan(settings, given, levels, upto))
    status = run_and_report(settings, given, levels, upto, annotations_gone=annotations_gone, no_test=no_test)
    sys.exit(status)


@main.command()
@scales(several=False)
@click.argument("slide_ids", nargs=-1, metavar="[SLIDE_ID]...")
@folders
@click.option("--model", help="newest, champion, or the path of a best.pt; as --set slide_prediction.model=…")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set one parameter; repeatable.")
def predict(
    levels: list[str],
    slide_ids: tuple[str, ...],
    settings: Settings,
    model: str | None,
    pairs: tuple[str, ...],
) -> None:
    """Predict slides with the model of a level, and rank them by score.

    Without SLIDE_ID, all slides of the folder. They need no annotation. Predictions that are up to date are
    kept. Exit status as for `run`.
    """
    with loading():
        from wsi_assets.console import predict_and_report
        from wsi_assets.orchestration.config import parse_settings

    if model:
        named = model if model in ("newest", "champion") else Path(model).absolute()
        pairs = (*pairs, f"slide_prediction.model={json.dumps(str(named))}")
    sys.exit(predict_and_report(settings, parse_settings(list(pairs)), levels[0], slide_ids))


@main.command()
@click.option("--home", type=FOLDER, default=Path("demo"), show_default=True, help="Folder for all files.")
def demo(home: Path) -> None:
    """Make a small annotated cohort and run the whole pipeline on it."""
    from wsi_assets.console import run_demo

    sys.exit(run_demo(home))


@main.command()
@folders
@click.option("--write-cohort", is_flag=True, help="Write a first cohort.csv into the images folder.")
def doctor(settings: Settings, write_cohort: bool) -> None:
    """Examine every slide: whether it opens, its size, its scale, and any problems.

    Exit status: 1 if any slide has a problem.
    """
    from wsi_assets.console import examine_slides

    sys.exit(examine_slides(settings, write_cohort))


@main.command()
@click.argument("slide_id")
@folders
def retire(settings: Settings, slide_id: str) -> None:
    """Remove a slide from the platform, after its file was removed from the folder of slides.

    Deletes its partition and its regions. Levels still contain the slide until they are made again.
    """
    from wsi_assets.console import retire_and_report

    sys.exit(retire_and_report(settings, slide_id))


@main.command()
@scales(several=False)
@click.option("--fraction", type=float, default=0.01, show_default=True, help="Share to check; 1 is all.")
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Seed of the sample.")
@folders
def verify(settings: Settings, levels: list[str], fraction: float, seed: int) -> None:
    """Compare a sample of the stored patches of a level with the pixels of the slides.

    Exit status: 1 if any patch differs.
    """
    from wsi_assets.console import verify_patches

    sys.exit(verify_patches(settings, levels[0], fraction, seed))


@main.command()
@scales(several=False)
@folders
def log(settings: Settings, levels: list[str]) -> None:
    """Log a finished training to MLflow from its files, if MLflow could not be reached during the training.

    Exit status: 1 if MLflow fails.
    """
    from wsi_assets.console import log_training

    sys.exit(log_training(settings, levels[0]))


@main.command()
@folders
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to serve on; this machine only."
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the Dagster UI."
)
@click.option(
    "--mlflow-port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="Port of the MLflow pages; 0 for none.",
)
@click.option(
    "--viewer-port",
    type=click.IntRange(0, 65535),
    default=5001,
    show_default=True,
    help="Port of the slide viewer; 0 for none.",
)
@click.option(
    "--home",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Show the results of `demo` in this folder, ignoring environment variables.",
)
def ui(
    settings: Settings, host: str, port: int, mlflow_port: int, viewer_port: int, home: Path | None
) -> None:
    """Serve the Dagster UI with its daemon, the MLflow pages and the slide viewer."""
    from wsi_assets.orchestration.instance import isolated_home
    from wsi_assets.orchestration.ui import serve

    if home is not None:
        if any(click.get_current_context().params[name] for name in FOLDERS):
            raise click.UsageError("--home already says where slides, annotations and storage are")
        settings = isolated_home(home)
    sys.exit(serve(settings, host, port, mlflow_port, viewer_port))


if __name__ == "__main__":
    main()
