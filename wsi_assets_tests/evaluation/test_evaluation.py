"""A whole evaluation: what counts as tumor, what is missing and why, and the files it leaves."""

from __future__ import annotations

import csv
import json
import re
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely

from wsi_assets.errors import EvaluationError, SlideError
from wsi_assets.evaluation import (
    EvaluationOptions,
    Metric,
    ReportContext,
    evaluate,
    read_levels,
    write_comparison,
    write_report,
)
from wsi_assets.evaluation.pictures import view_of
from wsi_assets.evaluation.report import worst_patches
from wsi_assets.files import write_json
from wsi_assets_tests.evaluation.synthetic import PictureSlide, cohort, entry, grid_entry, square

FAST = EvaluationOptions(bootstrap_samples=30, worst_patches=4, heatmap_side=200)


@contextmanager
def pink_slide(path):
    """A reader of a 3,072 x 3,072 slide without a file."""
    yield PictureSlide(path, np.full((3072, 3072, 3), (230, 180, 210), np.uint8))


def no_slide(path):
    raise SlideError("does not open", path=path)


def metrics_of(plain):
    """Every metric in the content of ``metrics.json``."""
    if isinstance(plain, dict):
        if set(plain) == {"value", "low", "high", "reason"}:
            yield plain
        else:
            for value in plain.values():
                yield from metrics_of(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from metrics_of(value)


def test_a_good_model_on_a_small_cohort():
    entries, regions = cohort()
    result = evaluate(entries, tumor_regions=regions, options=FAST, validation_threshold=0.45)
    assert result.patch.roc_auc.value > 0.9
    assert result.patch.patients == 3
    assert result.slide.auc_top_mean.value == 1.0
    assert [row.is_tumor for row in result.slide.ranking] == [True, True, False, False]
    assert result.froc.lesions == 2
    assert result.patch.at_validation.threshold == 0.45
    assert any("few patients: 3" in note for note in result.notes)


def test_the_same_tissue_gives_the_same_lesions_and_pictures_at_every_level():
    """Detections are placed and suppressed in micrometers, so the level of the patches does not matter."""
    probability = np.random.default_rng(0).beta(2, 3, (12, 12))
    seen = []
    for level in (0, 4):
        side = 256 // 2**level
        shape = {"patch_size": side, "stride": side, "level": level, "downsample": 2.0**level}
        plain = grid_entry("test_1", probability, **shape)
        outcome = evaluate({"test_1": plain}, tumor_regions={"test_1": square(512, 512, 1024)}, options=FAST)
        view = view_of(outcome.slides[0], None, 100)
        seen.append((outcome.slides[0].detections, view.box, outcome.notes))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) > 1


@pytest.mark.parametrize(("share", "patches"), [(0.07, 7), (0.071, 8), (0.001, 1), (1.0, 100)])
def test_the_number_of_top_patches_is_rounded_up(share, patches):
    probs = np.linspace(0.01, 1, 100)
    options = EvaluationOptions(bootstrap_samples=0, slide_top_fraction=share)
    plain = {"test_1": grid_entry("test_1", probs.reshape(10, 10))}
    (row,) = evaluate(plain, tumor_regions={}, options=options).slide.ranking
    assert (row.maximum, row.top_mean) == (1.0, pytest.approx(np.mean(probs[-patches:])))


def no_tumor():
    return {f"test_{i}": grid_entry(f"test_{i}", np.full((3, 3), i / 10)) for i in (2, 3)}, {}


def one_slide():
    entries, regions = cohort()
    return dict(list(entries.items())[:1]), regions


def no_annotation():
    entries, _ = cohort()
    return entries, {}


def equal_scores():
    entries, regions = cohort(side=9)
    return {name: {**one, "probs": [0.5] * len(one["probs"])} for name, one in entries.items()}, regions


def nothing_readable():
    entries, regions = cohort()
    nothing = float("nan")
    return {name: {**one, "probs": [nothing] * len(one["probs"])} for name, one in entries.items()}, regions


def empty_slide():
    entries, regions = cohort()
    return {**entries, "test_9": entry("test_9", [], [])}, {**regions, "test_9": square(0, 0, 900)}


def no_slides():
    return {}, {}


CASES = [no_tumor, one_slide, no_annotation, equal_scores, nothing_readable, empty_slide, no_slides]


@pytest.mark.parametrize(("case", "reader"), [*((case, pink_slide) for case in CASES), (one_slide, no_slide)])
def test_a_poor_test_set_gives_a_report_with_reasons(case, reader, tmp_path):
    entries, regions = case()
    result = evaluate(entries, tumor_regions=regions, options=FAST)
    page = write_report(result, tmp_path, open_slide=reader).read_text(encoding="utf-8")
    plain = json.loads((tmp_path / "metrics.json").read_text())
    for metric in metrics_of(plain):
        assert metric["value"] is not None or metric["reason"]
    missing = [metric["reason"] for metric in metrics_of(plain) if metric["value"] is None]
    assert all(reason in page for reason in missing)
    for one in result.slides:
        assert (tmp_path / "heatmaps" / f"{one.slide_id}.png").is_file()
        assert (tmp_path / "detections" / f"{one.slide_id}.csv").is_file()
        assert ("does not open" in page) == (reader is no_slide)


def test_without_tumor_no_metric_about_tumor_has_a_value():
    entries, regions = no_tumor()
    result = evaluate(entries, tumor_regions=regions, options=FAST)
    for metric in (
        result.patch.roc_auc,
        result.patch.average_precision,
        result.patch.at_default.sensitivity,
        result.slide.auc_maximum,
        result.froc.corrected,
    ):
        assert metric.value is None
        assert "tumor" in metric.reason or "lesion" in metric.reason
    assert result.patch.at_default.specificity.value == 1.0


def test_missing_test_slides_are_reported():
    result = evaluate({}, tumor_regions={}, options=FAST)
    assert "no test slide" in result.notes[0]
    assert result.patch.roc_auc == Metric.missing("no patch")
    assert result.froc.corrected.reason == "no test slide"


def slides_of(means, tumor, per_patient=1):
    """Slides of one patch each, so that the patch's probability is the score of the slide."""
    return {
        f"test_{number // per_patient:03d}_node_{number}": entry(
            f"test_{number // per_patient:03d}_node_{number}", [(0, 0, is_tumor)], [mean]
        )
        for number, (mean, is_tumor) in enumerate(zip(means, tumor, strict=True))
    }


def test_slides_are_predicted_at_the_threshold_chosen_on_validation_patches():
    tumor = [True] * 10 + [False] * 10
    means = [0.9] * 7 + [0.6, 0.4, 0.2] + [0.1] * 8 + [0.45, 0.8]
    entries = slides_of(means, tumor)
    chosen = evaluate(entries, options=FAST, validation_threshold=0.4).slide.operating_point
    assert (chosen.threshold, chosen.true_positives, chosen.false_positives) == (0.4, 9, 2)
    default = evaluate(entries, options=FAST).slide.operating_point
    assert (default.threshold, default.true_positives, default.false_positives) == (0.5, 8, 1)
    # Wilson's interval of 8 in 10.
    found = default.sensitivity
    assert [found.value, found.low, found.high] == pytest.approx([0.8, 0.490, 0.943], abs=1e-3)


def test_slides_of_one_patient_do_not_narrow_the_interval_of_slide_sensitivity():
    tumor = [True, False] * 12
    single = evaluate(slides_of([0.9, 0.1] * 12, tumor), options=FAST).slide.operating_point
    double = evaluate(slides_of([0.9, 0.1] * 12, tumor, per_patient=2), options=FAST).slide.operating_point
    assert single.sensitivity == double.sensitivity
    twice = slides_of([0.9] * 24 + [0.1] * 2, [True] * 24 + [False] * 2, per_patient=2)
    assert evaluate(twice, options=FAST).slide.operating_point.sensitivity == single.sensitivity


def test_slide_sensitivity_of_few_patients_has_no_interval():
    entries, regions = cohort()
    point = evaluate(entries, tumor_regions=regions, options=FAST).slide.operating_point
    assert point.sensitivity.value is not None
    assert (point.sensitivity.low, point.sensitivity.reason) == (None, "too few patients (3)")
    assert evaluate({}, options=FAST).slide.operating_point is None


def test_a_tumor_slide_without_annotation_is_ranked_but_left_out_of_froc():
    entries, regions = cohort()
    whole = evaluate(entries, tumor_regions=regions, options=FAST)
    result = evaluate(entries, tumor_regions={**regions, "test_001_node_1": None}, options=FAST)
    assert [row.is_tumor for row in result.slide.ranking] == [True, True, False, False]
    assert result.patch == whole.patch
    assert list(result.froc.left_out) == ["test_001_node_1"]
    assert (len(result.froc.hits), result.froc.lesions) == (3, 1)


def spec_only(entries):
    """Predictions with only the keys of the specification."""
    keys = ("slide_path", "label", "annotation_path", "level", "work_level", "magnification", "patches")
    return {
        name: {key: one[key] for key in (*keys, "probs", "preds")} | {"visualisation_coords": []}
        for name, one in entries.items()
    }


def test_the_keys_of_the_specification_are_enough_for_patches_and_slides(tmp_path):
    entries, regions = cohort()
    whole = evaluate(entries, tumor_regions=regions, options=FAST)
    result = evaluate(spec_only(entries), tumor_regions=regions, options=FAST)
    assert result.patch == whole.patch
    assert [slide.patch for slide in result.slides] == [slide.patch for slide in whole.slides]
    assert result.slide.auc_top_mean == whole.slide.auc_top_mean
    # Without a downsample, positions at level 0 are unknown, so nothing is matched with lesions.
    assert set(result.froc.left_out) == set(entries)
    assert result.froc.official.value is None
    page = write_report(result, tmp_path, open_slide=pink_slide).read_text(encoding="utf-8")
    assert "No heatmap and no detections" in page
    assert list((tmp_path / "detections").iterdir()) == []


def test_an_incompletely_annotated_slide_is_ranked_but_left_out_of_patch_metrics_and_froc(tmp_path):
    entries, regions = cohort()
    # Its tumor without annotation: high probabilities on patches labeled normal.
    entries["test_002"]["probs"][0] = 0.999
    result = evaluate(entries, tumor_regions=regions, options=FAST, incomplete_slides={"TEST_002"})
    rest = {name: one for name, one in entries.items() if name != "test_002"}
    alone = evaluate(rest, tumor_regions=regions, options=FAST)
    assert result.patch == alone.patch
    assert result.froc.corrected == alone.froc.corrected
    assert result.slide.slides == 4
    left_out = {(row.metrics, row.unit): row for row in result.exclusions}
    assert left_out["FROC", "slides"].slides == ("test_002",)
    patches = left_out["patch metrics", "patches"]
    assert (patches.excluded, patches.total) == (144, 576)
    assert not any(patch.slide_id == "test_002" for patch in worst_patches(result)[0])
    page = write_report(result, tmp_path, open_slide=pink_slide).read_text(encoding="utf-8")
    assert "not completely annotated" in page


def test_patches_of_neither_class_are_left_out_of_patch_metrics():
    patches = [(0, 0, False), (0, 256, True), (0, 512, False), (0, 768, False)]
    plain = entry("test_1", patches, [0.1, 0.9, 0.7, 0.3], tumor_fraction=[0.0, 0.8, 0.3, 0.1])
    by_area = evaluate({"test_1": {**plain, "config": {"label_rule": "fraction"}}}, options=FAST)
    assert (by_area.patch.tumor, by_area.patch.normal) == (1, 1)
    assert by_area.patch.at_default.false_positives == 0
    neither = next(row for row in by_area.exclusions if row.metrics == "patch metrics")
    assert (neither.excluded, neither.total) == (2, 4)
    assert worst_patches(by_area) == ([], [])
    any_tumor = evaluate({"test_1": {**plain, "config": {"label_rule": "any"}}}, options=FAST)
    assert any_tumor.patch.normal == 3


def test_calibrated_metrics_are_given_in_addition_to_raw_ones(tmp_path):
    entries, regions = cohort()
    calibration = {"temperature": 1.7, "shift": -0.4}
    result = evaluate(entries, tumor_regions=regions, options=FAST, calibration=calibration)
    patch = result.patch
    raw = np.concatenate([one["probs"] for one in entries.values()])
    labels = np.concatenate([[tumor for *_, tumor in one["patches"]] for one in entries.values()])
    calibrated = 1 / (1 + np.exp(-(np.log(raw / (1 - raw)) / 1.7 - 0.4)))
    assert result.calibrated.brier.value == pytest.approx(np.mean((calibrated - labels) ** 2))
    assert patch.brier.value == pytest.approx(np.mean((raw - labels) ** 2))
    assert result.calibrated.at_default.true_positives == ((calibrated >= 0.5) & labels).sum()
    page = write_report(result, tmp_path, open_slide=no_slide).read_text(encoding="utf-8")
    assert "Calibrated" in page


@pytest.mark.parametrize(
    "change",
    [
        {"probs": [0.5]},
        {"probs": [1.5] * 144},
        {"probs": ["high"] * 144},
        {"patches": [(0, 0)]},
        {"stride": 100},
        {"label": None, "patches": None},
        {"tumor_fraction": [0.5, 0.1], "config": {"label_rule": "fraction"}},
    ],
)
def test_damaged_predictions_are_refused_in_one_line(change):
    entries, regions = cohort()
    with pytest.raises(EvaluationError) as caught:
        evaluate({"test_002": {**entries["test_002"], **change}}, tumor_regions=regions)
    assert "\n" not in str(caught.value)
    bare = {key: value for key, value in entries["test_002"].items() if key not in change}
    for wrong in ({"test_002": {**bare, "probs": []}}, list(entries.values())):
        with pytest.raises(EvaluationError):
            evaluate(wrong, tumor_regions=regions)


@pytest.mark.parametrize(
    ("mpp", "asked", "given"), [(0.226, False, True), (0.5, False, False), (0.5, True, True)]
)
def test_the_official_froc_needs_the_pixel_size_of_the_challenge_or_the_option(mpp, asked, given):
    entries, regions = cohort()
    entries = {name: {**one, "mpp": mpp} for name, one in entries.items()}
    options = FAST.model_copy(update={"official_froc": asked})
    result = evaluate(entries, tumor_regions=regions, options=options).froc
    assert (result.official.value is not None) == given
    assert result.corrected.value is not None
    lengths = [hits.lesions.lesions[0].length_um for hits in result.hits if hits.lesions]
    # A square of 6 patches, in micrometers by the pixel size of its slide.
    assert lengths == pytest.approx([6 * 256 * mpp * 4 / 12**0.5] * 2, rel=0.1)


def test_a_patient_summary_covers_all_slides_of_the_patient():
    entries, regions = cohort()
    result = evaluate(entries, tumor_regions=regions, options=FAST)
    first, _, last = result.patients
    assert (first.patient, first.slides, first.tumor_slides) == ("test_001", 2, 1)
    assert (first.patch.tumor, first.patch.normal) == (36, 252)
    assert (first.lesions, first.lesions_detected) == (1, 1)
    assert (last.lesions, last.patch.at_default.sensitivity.value, last.patch.roc_auc.value) == (
        0,
        None,
        None,
    )
    assert sum(row.patch.tumor for row in result.patients) == result.patch.tumor


def test_the_worst_patches_are_the_most_certain_mistakes_with_level_0_centers():
    patches = [(0, 0, 0), (0, 256, 0), (0, 512, 1), (256, 0, 1), (256, 256, 0)]
    plain = entry("test_1", patches, [0.6, 0.95, 0.4, 0.02, float("nan")], downsample=4.0)
    false_positives, false_negatives = worst_patches(
        evaluate({"test_1": plain}, tumor_regions={}, options=FAST)
    )
    assert [(patch.probability, patch.x0, patch.y0) for patch in false_positives] == [
        (0.95, 1536, 512),
        (0.6, 512, 512),
    ]
    assert [patch.probability for patch in false_negatives] == [0.02, 0.4]


def test_the_report_is_one_file_and_shows_its_context(tmp_path):
    entries, regions = cohort()
    context = ReportContext(
        cohort="A <b>cohort</b>",
        level=4,
        magnification=2.5,
        counts=[{"slide": "tumor_001", "patches": 1234, "tumor": 56}],
        split=[{"part": "training", "patients": 3}],
        split_notes=["Split by slide: too few patients."],
        epochs=[{"epoch": 1, "train_loss": 0.7, "train_acc": 0.5, "val_loss": 0.6, "val_acc": 0.5}],
        cross_validation={
            "folds": [
                {"fold": n, "slides": ["a", "b"], "tumor": 9, "normal": 99, "roc_auc": auc}
                for n, auc in enumerate((0.8, 0.9, None))
            ],
            "mean": {"roc_auc": 0.85},
            "spread": {"roc_auc": 0.0707},
        },
        left_out={"normal_007": "has no level 4"},
        quarantined=[{"slide": "test_002", "y": 256, "x": 512, "reason": "tile is damaged"}],
        audit=[{"name": "bow-tie", "action": "repaired"}],
        config={"batch_size": 64},
        seconds={"training": 125.0},
        mlflow_url="http://localhost:5000/#/runs/1",
    )
    result = evaluate(entries, tumor_regions=regions, options=FAST)
    page = write_report(result, tmp_path, context, open_slide=pink_slide).read_text(encoding="utf-8")
    assert not re.search(
        r"""(?:src|href)=["'](?!data:|#|http://localhost:5000|metrics.json|heatmaps/)""", page
    )
    assert "<script src" not in page
    assert "A &lt;b&gt;cohort&lt;/b&gt;" in page
    for seen in (
        "1,234",
        "too few patients",
        "has no level 4",
        "tile is damaged",
        "bow-tie",
        "2 min 5 s",
        "0.850 ± 0.071",
    ):
        assert seen in page
    rows = list(csv.reader((tmp_path / "detections" / "test_002.csv").open()))
    assert [(float(p), int(x), int(y)) for p, x, y in rows] == [
        (found.probability, found.x, found.y) for found in result.slides[2].detections
    ]
    assert cv2.imread(str(tmp_path / "heatmaps" / "test_002.png")).std() > 5
    assert "research use only" in page.lower()
    assert (
        page.count('<svg class="scene"') >= 2 * len(entries) + 2
    )  # a pair for each slide, a crop for each lesion


def test_unknown_values_are_shown_as_not_available(tmp_path):
    entries, regions = cohort()
    page = write_report(
        evaluate(entries, tumor_regions=regions, options=FAST), tmp_path, open_slide=pink_slide
    )
    assert page.read_text(encoding="utf-8").count("not available") >= 6


def test_the_same_predictions_give_the_same_metrics():
    entries, regions = cohort()
    once, again = (evaluate(entries, tumor_regions=regions, options=FAST).to_plain() for _ in range(2))
    once.pop("seconds"), again.pop("seconds")
    assert once == again
    assert (
        evaluate(dict(reversed(entries.items())), tumor_regions=regions, options=FAST).froc.official.value
        == (once["froc"]["official_score"]["value"])
    )


def test_levels_are_compared_with_their_intervals(tmp_path):
    files, results = {}, {}
    for level, seed in ((4, 1), (2, 0), (None, None)):
        entries, regions = cohort(seed) if level else no_tumor()
        entries = dict(list(entries.items())[:2])
        context = ReportContext(
            level=level, magnification=level and 40 / 2**level, seconds={"a": 60.0, "b": 5.0}
        )
        results[level] = evaluate(entries, tumor_regions=regions, options=FAST)
        write_report(results[level], tmp_path / str(level), context, open_slide=no_slide)
        files[str(level)] = tmp_path / str(level) / "metrics.json"
    write_json(tmp_path / "old.json", {"format": 0})
    (tmp_path / "half.json").write_text("{half")
    bad = {name: tmp_path / f"{name}.json" for name in ("old", "half", "gone")}
    rows, left_out = read_levels({**files, **bad})
    assert list(left_out) == list(bad)
    assert [(row["level"], row["magnification"], row["seconds"]) for row in rows] == [
        (2, 10.0, 65.0),
        (4, 2.5, 65.0),
        (None, None, 65.0),
    ]
    assert rows[1]["metrics"]["patch_auc"]["value"] == results[4].patch.roc_auc.value
    assert rows[2]["metrics"]["froc_corrected"]["value"] is None
    page = write_comparison(rows, tmp_path / "all").read_text(encoding="utf-8")
    for seen in ("2.5×", "no lesion on a test slide", "not evaluated on the same number", "level_4/report"):
        assert seen in page
    assert cv2.imread(str(tmp_path / "all" / "comparison.png")) is not None
    page = write_comparison([], tmp_path / "none").read_text(encoding="utf-8")
    assert "No level has been evaluated" in page
    assert read_levels({}) == ([], {})
    with pytest.raises(EvaluationError):
        read_levels(bad)


def test_an_annotation_far_outside_its_slide_does_not_stop_the_evaluation():
    entries, regions = cohort()
    stray = regions["test_001_node_1"].geometry.union(shapely.box(6e5, 6e5, 6.01e5, 6.01e5))
    regions["test_001_node_1"] = replace(regions["test_001_node_1"], geometry=shapely.MultiPolygon(stray))
    sizes = dict.fromkeys(regions, (20_000, 20_000))
    assert evaluate(entries, tumor_regions=regions, options=FAST, sizes=sizes).froc.lesions == 2


def test_a_metric_is_finite_or_has_a_reason():
    with pytest.raises(ValueError, match="finite"):
        Metric(float("nan"), reason="x")
    with pytest.raises(ValueError, match="says why"):
        Metric(None)


def test_the_report_of_a_real_cohort_shows_its_slides(real_data, tmp_path):
    from wsi_assets.annotations import read_annotation

    truth = json.loads((real_data / "cohort" / "truth.json").read_text())
    generator = np.random.default_rng(1)
    entries, regions = {}, {}
    for slide_id in ("test_073_node_1", "tumor_004_node_1"):
        tumor = np.array([row[2] for row in truth[slide_id]], bool)
        probs = np.where(tumor, generator.beta(5, 2, len(tumor)), generator.beta(2, 5, len(tumor)))
        path = str(real_data / "cohort" / "images" / f"{slide_id}.tif")
        entries[slide_id] = entry(slide_id, truth[slide_id], probs, slide_path=path)
        annotation = real_data / "cohort" / "annotations" / f"{slide_id}.xml"
        regions[slide_id] = read_annotation(annotation) if annotation.exists() else None
    result = evaluate(entries, tumor_regions=regions, options=FAST)
    page = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert "could not be read" not in page
    assert (tmp_path / "heatmaps" / "test_073_node_1_likelihood_map.tif").is_file()
    assert [row.is_tumor for row in result.slide.ranking] == [True, False]


def test_an_unreadable_patch_is_counted_but_left_out_of_metrics():
    patches = [(0, 0, False), (0, 256, True), (0, 512, False), (0, 768, True)]
    whole = evaluate({"test_1": entry("test_1", patches[:3], [0.2, 0.8, 0.6])}, options=FAST)
    holed = evaluate({"test_1": entry("test_1", patches, [0.2, 0.8, 0.6, float("nan")])}, options=FAST)
    assert holed.patch == whole.patch
    (unread,) = (row for row in holed.exclusions if row.metrics == "every metric")
    assert (unread.excluded, unread.total, unread.slides) == (1, 4, ("test_1",))
