"""The evaluation as the graph makes it: what it takes from the slides, and the figures it shows."""

from __future__ import annotations

import json
import re

import dagster as dg
import numpy as np

from wsi_assets.evaluation import EvaluationOptions, compare, evaluate
from wsi_assets.files import write_plain_pickle
from wsi_assets.orchestration.assets.evaluation import evaluation
from wsi_assets.orchestration.io_managers.plain_pickle import PlainPickleIOManager
from wsi_assets.orchestration.io_managers.reports import ReportIOManager
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.report_context import headline
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.resources.tracking import ModelTracking
from wsi_assets_tests.evaluation.synthetic import cohort, grid_entry
from wsi_assets_tests.index.fakes import tissue_of, tumor_box

LEVEL = "0"
UPSTREAM = {
    "tissue_regions": SLIDES,
    "annotation_regions": SLIDES,
    "test_predictions": LEVELS,
}


def evaluated(folder, *times):
    """The report of two slides of 2,560 x 2,048 pixels, one with a tumour in its bottom right corner.

    Evaluated as often as there are ``times``, each with these settings; the last report's folder.
    """
    layout = StorageLayout(folder)
    outline = tumor_box(1536, 2048, 512, 512)
    for slide_id, regions in (("test_001", outline.to_plain()), ("test_002", None)):
        tissue = tissue_of(slide_id, np.ones((256, 320), bool))
        write_plain_pickle(layout.slide_artefact("tissue_regions", slide_id), tissue.to_plain())
        stored = {"annotation_path": None, "regions": regions}
        write_plain_pickle(layout.slide_artefact("annotation_regions", slide_id), stored)
    tumor = np.zeros((8, 10), bool)
    tumor[6:, 8:] = True
    entries = {
        "test_001": grid_entry("test_001", np.where(tumor, 0.9, 0.1), tumor),
        "test_002": grid_entry("test_002", np.full((8, 10), 0.1)),
    }
    write_plain_pickle(layout.level_artefact("test_predictions", LEVEL), entries)
    upstream = [
        dg.AssetSpec(name, partitions_def=partitions, metadata={"dagster/io_manager_key": "pickle_io"})
        for name, partitions in UPSTREAM.items()
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(SLIDES.name, ["test_001", "test_002"])
        for settings in times or [{}]:
            config = {"bootstrap_samples": 0, "heatmap_side": 200, **settings}
            result = dg.materialize(
                [*upstream, evaluation],
                instance=instance,
                partition_key=LEVEL,
                selection=[evaluation],
                run_config={"ops": {"evaluation": {"config": config}}},
                resources={
                    "library": SlideLibrary(images_dir=str(folder / "images")),
                    "tracking": ModelTracking(storage_dir=str(folder)),
                    "pickle_io": PlainPickleIOManager(storage_dir=str(folder)),
                    "report_io": ReportIOManager(storage_dir=str(folder)),
                },
            )
            assert result.success
    return layout.level_artefact("evaluation", LEVEL)


def test_a_lesion_at_the_slide_s_edge_ends_where_the_slide_ends(tmp_path):
    metrics = json.loads((evaluated(tmp_path) / "metrics.json").read_text())
    (lesion,) = metrics["froc"]["lesion_table"]
    # Sixteen mask pixels of 32 a side, widened by four, but not beyond the 64 x 80 that the slide has.
    assert lesion["box"] == [44, 60, 64, 80]


def test_a_report_tells_the_settings_it_was_made_with_and_no_others(tmp_path):
    folder = evaluated(tmp_path, {"detection_threshold": 0.3125}, {"detection_threshold": 0.0004})
    page = (folder / "report.html").read_text()
    told = re.findall(r"<th>[^<]*detection_threshold</th><td>([^<]*)</td>", page)
    assert [float(value) for value in told] == [0.0004]


def test_the_slide_auc_is_one_number_wherever_it_is_shown():
    entries, regions = cohort()
    # One odd patch on a normal slide: its highest patch misleads, the mean of its top share does not.
    entries["test_003"]["probs"][5] = 1.0
    options = EvaluationOptions(bootstrap_samples=0, slide_top_fraction=0.2)
    outcome = evaluate(entries, tumor_regions=regions, options=options)
    assert outcome.slide.auc_maximum.value != outcome.slide.auc_top_mean.value
    (compared,) = compare([outcome.to_plain()])
    assert headline(outcome)["slide_auc"].value == compared["metrics"]["slide_auc"]["value"]
