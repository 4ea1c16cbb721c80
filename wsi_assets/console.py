"""Output of the command line: progress bars, tables, and one line per problem."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsi_assets.errors import FAILED, LEFT_OUT, OK, EvaluationError, StoreError
from wsi_assets.progress import progress_bars
from wsi_assets.slides.resolution import words_of

if TYPE_CHECKING:
    from wsi_assets.index.doctor import SlideHealth
    from wsi_assets.orchestration.cli_run import LevelOutcome, SlidesOutcome
    from wsi_assets.orchestration.config import ParameterSet
    from wsi_assets.orchestration.settings import Settings

console = Console(highlight=False)

WIDE = 1000
"""Width in characters that is enough for any table."""


def _say(line: str, style: str | None = None) -> None:
    console.print(line, style=style, soft_wrap=True, markup=False)


def run_and_report(
    settings: Settings,
    given: ParameterSet,
    levels: Sequence[str],
    upto: str,
    *,
    annotations_gone: bool = False,
    no_test: bool = False,
) -> int:
    """Run slides and levels; print what was made, what was left out and why.

    Returns:
        exit status: ``FAILED`` if a level or the comparison failed, ``LEFT_OUT`` if slides were left out,
        else ``OK``.

    Raises:
        ConfigError: ``upto`` is not an asset of levels, or there are no slides to train or test on.
        ModelError: the given network does not exist.
        SlideError: the folder of slides cannot be listed, or most registered slides are gone.
    """
    from wsi_assets.orchestration.cli_run import CommandLineRun, chain_upto
    from wsi_assets.orchestration.instance import open_instance
    from wsi_assets.orchestration.metadata import progress_on_terminal
    from wsi_assets.orchestration.orphaned_runs import fail_orphaned_runs
    from wsi_assets.slides import existing_folder

    chain = chain_upto(upto)  # first, so that a wrong name is reported before the slides are read
    trains = any(artefact.name == "trained_model" for artefact in chain)
    if trains and no_test:
        upto = "trained_model"
    no_test = no_test or upto == "trained_model"
    started = time.monotonic()
    existing_folder(settings.images_dir)  # first, because opening the instance makes the storage folder
    with open_instance(settings) as instance, progress_bars(console) as bars, progress_on_terminal(bars):
        # A killed run may still occupy a pool that this run needs.
        fail_orphaned_runs(instance, lambda line: _print_notices([line]))
        commanded = CommandLineRun(instance, settings, given, lambda line: _print_notices([line]))
        if trains:
            commanded.check_sides(levels, no_test=no_test)
            commanded.check_weights(levels)
        slides = commanded.run_slides(annotations_gone=annotations_gone)
        outcomes = [commanded.run_level(level, upto) for level in levels]
        compared, incomparable = {}, None
        if any("evaluation" in outcome.made for outcome in outcomes):
            try:
                compared = commanded.compare_levels()
            except EvaluationError as error:
                incomparable = error
    _print_slides(slides)
    for outcome in outcomes:
        _print_level(outcome, settings.storage_dir)
    left_out = {**{key: reason for o in outcomes for key, reason in o.left_out.items()}, **slides.left_out}
    _print_left_out(left_out)
    if compared:
        _print_comparison(compared)
    if incomparable:
        _say(f"\nerror: {incomparable}", "red")
    _say(f"\nEverything is in {settings.storage_dir} ({time.monotonic() - started:.0f} s).")
    if incomparable or any(outcome.failure for outcome in outcomes):
        return FAILED
    return LEFT_OUT if left_out else OK


def predict_and_report(settings: Settings, given: ParameterSet, level: str, slide_ids: Sequence[str]) -> int:
    """Predict slides; print them ranked by score, and what was left out; returns the exit status."""
    from wsi_assets.orchestration.assets.slide_prediction import SLIDE_PREDICTION
    from wsi_assets.orchestration.cli_run import CommandLineRun
    from wsi_assets.orchestration.instance import open_instance
    from wsi_assets.orchestration.metadata import progress_on_terminal
    from wsi_assets.orchestration.orphaned_runs import fail_orphaned_runs
    from wsi_assets.orchestration.partitions import both
    from wsi_assets.slides import existing_folder

    started = time.monotonic()
    existing_folder(settings.images_dir)  # first, because opening the instance makes the storage folder
    with open_instance(settings) as instance, progress_bars(console) as bars, progress_on_terminal(bars):
        fail_orphaned_runs(instance, lambda line: _print_notices([line]))
        commanded = CommandLineRun(instance, settings, given, lambda line: _print_notices([line]))
        outcome = commanded.predict_slides(level, slide_ids)
    if outcome.slides:
        table = Table(box=SIMPLE_HEAD)
        for column in ("slide", "score", "calibrated", "area mm2", "detections", "files"):
            table.add_column(
                column, overflow="fold", justify="left" if column in ("slide", "files") else "right"
            )
        ranked = sorted(outcome.slides.items(), key=lambda pair: -(pair[1]["score"] or 0))
        for slide_id, found in ranked:
            numbers = [found[name] for name in ("score", "calibrated", "area_mm2")]
            cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
            folder = commanded.storage.artefact(SLIDE_PREDICTION, both(slide_id, level))
            where = str(folder.relative_to(settings.storage_dir))
            table.add_row(slide_id, *cells, str(found["detections"]), where)
        _page().print(table)
    _print_notices(outcome.notices)
    _print_left_out(outcome.left_out)
    if outcome.failure:
        _say(f"error: {outcome.failure}", "red")
    console.print(
        f"{words_of(level)}: {outcome.made} predicted, {len(outcome.slides) - outcome.made} up to date, "
        f"{len(outcome.left_out)} left out"
    )
    _say(f"Everything is in {settings.storage_dir} ({time.monotonic() - started:.0f} s).")
    return FAILED if outcome.failure else LEFT_OUT if outcome.left_out else OK


def print_plan(settings: Settings, given: ParameterSet, levels: Sequence[str], upto: str) -> int:
    """Print what a run would make, and why; returns the exit status."""
    from wsi_assets.orchestration.cli_run import CommandLineRun
    from wsi_assets.orchestration.instance import look_into_instance

    with look_into_instance(settings) as instance:
        lines = CommandLineRun(instance, settings, given).plan(levels, upto)
    for line in lines:
        _say(line)
    _say(f"{len(lines)} lines; nothing was made" if lines else "nothing to do, everything is up to date")
    return OK


def run_demo(home: Path) -> int:
    """Make the demo cohort in ``home``, run one level to its evaluation and predict a new slide.

    Returns:
        exit status.
    """
    from wsi_assets.demo import DEMO_LEVEL, DEMO_PARAMETERS, make_cohort, make_new_slide
    from wsi_assets.orchestration.config import ParameterSet
    from wsi_assets.orchestration.instance import isolated_home

    home = home.absolute()
    with progress_bars(console) as bars:
        make_cohort(home, progress=bars)
    settings = isolated_home(home)
    status = run_and_report(settings, ParameterSet(DEMO_PARAMETERS), [str(DEMO_LEVEL)], "evaluation")
    made = settings.storage_dir / f"level_{DEMO_LEVEL}"
    model, new = made / "checkpoints" / "best.pt", home / "new"
    picture = new / "storage" / "slides" / "new_001" / made.name / "new_001.png"
    if model.is_file():
        make_new_slide(new)
        given = ParameterSet({"slide_prediction": {"model": str(model)}})
        status = status or predict_and_report(isolated_home(new), given, str(DEMO_LEVEL), ())
    console.print("\n[bold]Where to go next[/bold]")
    _say(f"  the report      {made / 'report' / 'report.html'}")
    _say(f"  a new slide     {picture}")
    # The full path if the environment is not activated, as with `make demo`.
    program = shutil.which("wsi-assets") and "wsi-assets"
    program = program or str(Path(sys.executable).with_name("wsi-assets"))
    for what, arguments in (
        ("the graph      ", ["ui", "--home", str(home)]),
        ("the new slide  ", ["ui", "--home", str(new)]),
        ("your own slides", ["run", "--level", "0", "--images", "DIR", "--annotations", "DIR"]),
    ):
        _say(f"  {what} {shlex.join([program, *arguments])}")
    return status


def examine_slides(settings: Settings, write_cohort: bool = False) -> int:
    """Print one row per slide and one line per problem; returns ``FAILED`` if there is any."""
    from wsi_assets.index.doctor import add_patients_and_sides, examine
    from wsi_assets.orchestration.cli_run import accepted_slides
    from wsi_assets.orchestration.storage import StorageResource
    from wsi_assets.slides import cohort as tables
    from wsi_assets.slides import find_slides, read_cohort

    cohort = read_cohort(settings.images_dir, settings.cohort)
    listing = find_slides(settings.images_dir, settings.annotations_dir, cohort)
    accepted = accepted_slides(settings, [None, *StorageResource.of(settings).levels()])
    rows = []
    with progress_bars(console) as bars:
        for done, slide in enumerate(listing.slides):
            bars(done, len(listing.slides), "examining slides")
            rows.append(examine(slide, accepted))
        bars(len(listing.slides), len(listing.slides), "examining slides")
    add_patients_and_sides(rows, cohort)
    _print_health(rows)
    if rows:
        patients = len({row.patient or row.slide_id for row in rows})
        tests = sum(row.side == "test" for row in rows)
        missing = "" if tests else ": name some in cohort.csv (--write-cohort), or train with --no-test"
        _print_notices([f"{patients} patients, {tests} test slides{missing}"])
    for row in rows:
        for problem in row.problems:
            _say(f"problem: {row.slide_id}: {problem}", "red")
    for name, reason in listing.left_out.items():
        _say(f"left out: {name}: {reason}", "red")
    for stray in listing.strays:
        _say(f"problem: {stray}", "red")
    _print_notices([line for line in listing.notices if line not in listing.strays])
    faulty = sum(bool(row.problems) for row in rows) + len(listing.left_out) + len(listing.strays)
    console.print(
        f"{len(rows)} slides, {faulty} with a problem" if rows else f"no slides in {settings.images_dir}"
    )
    if write_cohort:
        path = settings.cohort or settings.images_dir / tables.COHORT_FILE
        tables.write_cohort(path, {row.slide_id: (row.patient or row.slide_id, row.side) for row in rows})
        _say(
            f"cohort: {path}: correct it, and fill in what the names of slides do not state. An empty cell "
            "states nothing; a slide whose line states something is made again by the next run"
        )
    return FAILED if faulty or not rows else OK


def retire_and_report(settings: Settings, slide_id: str) -> int:
    """Retire a slide and print which levels may still contain it; returns the exit status."""
    from wsi_assets.orchestration.instance import open_instance
    from wsi_assets.orchestration.resources import SlideFolderResource
    from wsi_assets.orchestration.retire_slide import retire_slide
    from wsi_assets.orchestration.storage import StorageResource

    folder, storage = SlideFolderResource.of(settings), StorageResource.of(settings)
    with open_instance(settings) as instance:
        levels = retire_slide(instance, folder, storage, slide_id)
    console.print(f"{slide_id} is retired", markup=False)
    if levels:
        console.print(
            f"it may still be in {', '.join(map(words_of, levels))}: make these again to remove it there"
        )
    return OK


def log_training(settings: Settings, level: str) -> int:
    """Log a finished training to MLflow; returns ``FAILED`` if MLflow fails."""
    from wsi_assets.orchestration.mlflow import MlflowResource, log_finished

    faults: list[str] = []
    page = log_finished(MlflowResource.of(settings), level, faults.append)
    for fault in faults:
        _say(f"error: {fault}", "red")
    if not faults:
        _say(f"{words_of(level)} is logged: {page}")
    return FAILED if faults else OK


def verify_patches(settings: Settings, level: str, fraction: float, seed: int) -> int:
    """Compare a sample of the patches of a level with their slides; returns ``FAILED`` if any differs.

    Args:
        fraction: share of the patches to compare, up to 1.
        seed: seed of the sample.

    Raises:
        StoreError: the level has no patch store, or a damaged one.
    """
    from wsi_assets.files import read_plain_pickle
    from wsi_assets.orchestration.assets.index import SAMPLED_INDEX
    from wsi_assets.orchestration.assets.patches import PATCH_STORE
    from wsi_assets.orchestration.resources import SlideFolderResource
    from wsi_assets.orchestration.storage import StorageResource, store_named_by
    from wsi_assets.patches import open_store, verify_store

    storage = StorageResource.of(settings)
    if storage.record(PATCH_STORE, level) is None:
        raise StoreError(
            f"{words_of(level)} has no patches",
            path=storage.level_folder(level),
            remedy="Make them first (wsi-assets run --upto patch_store)",
        )
    index = SlideFolderResource.of(settings).with_present_paths(
        read_plain_pickle(storage.artefact(SAMPLED_INDEX, level))
    )
    with (
        open_store(store_named_by(storage.artefact(PATCH_STORE, level))) as store,
        progress_bars(console) as bars,
    ):
        report = verify_store(store, index, fraction, seed, progress=bars)
    for key, problem in report.problems:
        _say(f"problem: {key}: {problem}", "red")
    console.print(
        f"{report.checked} of {report.patches} patches read again, {len(report.problems)} differ "
        f"(largest mean difference {report.worst_difference:.3f} gray levels)"
    )
    return OK if report.ok else FAILED


def _page() -> Console:
    """The console for tables; wide for output to a file, which rich assumes to have 80 columns."""
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def _print_health(rows: Sequence[SlideHealth]) -> None:
    """Print one row per slide, on a narrow terminal without the least important columns."""
    from wsi_assets.index.doctor import COLUMNS, DROP_ORDER, LEGEND, MAGNIFICATIONS

    page = _page()
    filled = [column for column in COLUMNS if any(cell for row in rows for cell in row.cells([column]))]
    for dropped in range(len(DROP_ORDER) + 1):
        columns = [column for column in filled if column not in DROP_ORDER[:dropped]]
        table = Table(box=SIMPLE_HEAD)
        for column in columns:
            # Text that still does not fit is folded instead of truncated, so that ids stay readable.
            table.add_column(column, overflow="fold", no_wrap=column == "slide")
        for row in rows:
            table.add_row(*row.cells(columns), style="red" if row.problems else None)
        if page.measure(table, options=page.options.update(max_width=WIDE)).maximum <= page.width:
            break
    page.print(table)
    if MAGNIFICATIONS in columns:
        shown = " ".join(row.magnifications for row in rows)
        _print_notices([meaning for sign, meaning in LEGEND.items() if sign in shown])
    if dropped:
        missing = ", ".join(DROP_ORDER[:dropped])
        _print_notices([f"the terminal is too narrow for {missing}; a wider one, or a file, shows all"])


def _print_comparison(compared: Mapping[str, Any]) -> None:
    _say(f"\nComparison of all evaluated levels: {compared['path']}")
    for level, reason in compared["left_out"].items():
        _say(f"  without {words_of(level)}: {reason}", "yellow")


def _print_slides(slides: SlidesOutcome) -> None:
    console.print(
        f"slides: {len(slides.made)} made, {len(slides.up_to_date)} up to date, "
        f"{len(slides.left_out)} left out"
    )
    _print_notices(slides.notices)


def _print_notices(notices: Iterable[str]) -> None:
    for notice in notices:
        _say(f"note: {notice}", "dim")


def _print_left_out(left_out: Mapping[str, str]) -> None:
    if left_out:
        console.print(f"\n[yellow]{len(left_out)} left out:[/yellow]")
        for name, reason in sorted(left_out.items()):
            _say(f"  {name}: {reason}")


def _print_level(outcome: LevelOutcome, storage: Path) -> None:
    from wsi_assets.orchestration.artefact import all_artefacts, level_chain
    from wsi_assets.orchestration.storage import StorageResource

    table = Table(title=f"{words_of(outcome.level)} ({outcome.seconds:.0f} s)", title_justify="left")
    for column in ("asset", "status", "result", "path"):
        table.add_column(column, overflow="fold")
    resource, level = StorageResource(storage_dir=str(storage)), outcome.level
    requested = [one for one in all_artefacts() if one.optional and one.name in outcome.records]
    for artefact in (*level_chain(), *requested):
        record = outcome.records.get(artefact.name)
        made = "made" if artefact.name in outcome.made else "up to date"
        is_shown = record is not None and artefact.name in (*outcome.made, *outcome.up_to_date)
        # Relative to the storage folder, which the last line of the output names.
        path = resource.artefact(artefact, level).relative_to(storage)
        facts = _summary(artefact.shown, record.facts) if is_shown else ""
        table.add_row(artefact.name, made if is_shown else "not made", facts, str(path) if is_shown else "")
    _page().print(table)
    if outcome.failure:
        _say(f"error: {words_of(outcome.level)}: {outcome.failure}", "red")
    elif not outcome.made:
        console.print(f"{words_of(outcome.level)}: nothing to do, everything is up to date")
    if "evaluation" in (*outcome.made, *outcome.up_to_date):
        _say(f"report: {resource.level_folder(level) / 'report' / 'report.html'}")
    for line in outcome.failed_checks:
        _say(f"check failed: {line}", "yellow")


def _summary(shown: Sequence[str], facts: Mapping[str, Any]) -> str:
    parts = []
    for name in shown:
        value = facts.get(name)
        if value is not None:
            parts.append(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
