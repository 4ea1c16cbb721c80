"""What must be true of an artefact before anyone builds on it: pure functions of values, one verdict each.

Nothing here knows Dagster; :mod:`.checks` reads the values and shows the verdicts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST_TEXT = 2000
"""Verdicts are stored with every evaluation; ten thousand slides by name are not read by anyone."""


@dataclass(frozen=True)
class Verdict:
    """Whether a fact holds, in one line, with figures worth plotting."""

    passed: bool
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def nothing_found(faults: Mapping[str, str] | Iterable[tuple[str, str]], else_text: str) -> Verdict:
    """Passed if there are no faults, (slide id, what is wrong); else it names them."""
    pairs = list(faults.items() if isinstance(faults, Mapping) else faults)
    text = "; ".join(f"{slide_id}: {fault}" for slide_id, fault in sorted(pairs)) or else_text
    return Verdict(not pairs, text[:LONGEST_TEXT], {"slides_named": len({slide_id for slide_id, _ in pairs})})


def made_alike(parameters: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Whether the regions of all slides were made with the same parameters; names the odd ones out.

    Args:
        parameters: slide id -> those its regions were made with.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for slide_id, values in sorted(parameters.items()):
        groups[json.dumps(values, sort_keys=True)].append(slide_id)
    if len(groups) < 2:
        return Verdict(True, f"{len(parameters)} slides, one set of parameters", {"slides_named": 0})
    usual = max(groups, key=lambda key: len(groups[key]))
    usual_values = json.loads(usual)
    odd = {}
    for key, slide_ids in groups.items():
        values = json.loads(key)
        names = [name for name in sorted(values | usual_values) if values.get(name) != usual_values.get(name)]
        differs = ", ".join(
            f"{name}={values.get(name)!r} instead of {usual_values.get(name)!r}" for name in names
        )
        odd.update({slide_id: differs for slide_id in slide_ids if key != usual})
    return nothing_found(odd, "")


def sample_is_of_index(
    index: Mapping[str, Mapping[str, Any]], sampled: Mapping[str, Mapping[str, Any]]
) -> Verdict:
    """Whether the sample takes its patches and labels from the index, all of them on test slides."""
    from wsi_assets.index import is_test

    faults = {}
    chosen = {slide_id: entry["patches"] for slide_id, entry in sampled.items()}
    for slide_id, entry in index.items():
        whole = {tuple(patch) for patch in entry["patches"]}
        part = {tuple(patch) for patch in chosen.pop(slide_id, [])}
        if not part <= whole:
            faults[slide_id] = f"{len(part - whole)} patches are not in the index"
        elif is_test(slide_id, entry) and part != whole:
            faults[slide_id] = f"a test slide, and {len(whole - part)} of its patches are left out"
    faults.update({slide_id: "is not in the index" for slide_id, patches in chosen.items() if patches})
    return nothing_found(faults, "every patch is of the index, test slides are whole")


def has_both_classes(sampled: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Whether the slides to learn from hold tumor and normal patches."""
    from wsi_assets.index import is_test

    tumor = normal = 0
    for slide_id, entry in sampled.items():
        if not is_test(slide_id, entry):
            labels = sum(patch[2] for patch in entry["patches"])
            tumor += labels
            normal += len(entry["patches"]) - labels
    text = f"{tumor} tumour and {normal} normal patches on slides that are not test slides"
    if not (tumor and normal):
        text += ": nothing can be learnt from one class. Add slides, or their outlines"
    return Verdict(bool(tumor and normal), text, {"tumor": tumor, "normal": normal})


def store_equals_index(
    digest: str, wanted_digest: str, stored: int, quarantined: int, wanted: int
) -> Verdict:
    """Whether a store holds exactly the patches of its index, but for the unreadable ones.

    Args:
        digest: identity of the content the store says it has.
        wanted_digest: identity of the content its index asks for now.
    """
    text = f"{stored} stored + {quarantined} unreadable of {wanted} in the index"
    if digest != wanted_digest:
        text += "; the store was built from another index, other slides or other parameters"
    passed = digest == wanted_digest and stored + quarantined == wanted
    return Verdict(passed, text, {"stored": stored, "wanted": wanted})


def few_quarantined(quarantined: int, wanted: int, most: float) -> Verdict:
    """Whether the share of unreadable patches is within ``most``, 0 to 1."""
    share = quarantined / wanted if wanted else 0.0
    text = f"{quarantined} of {wanted} patches unreadable ({share:.2%}), at most {most:.2%} may be"
    return Verdict(share <= most, text, {"share": share})


def no_leakage(split: Iterable[Mapping[str, Any]], unit: str | None) -> Verdict:
    """Whether no patient is on two sides of the split (training, validation, test).

    Args:
        split: rows with ``patient`` and ``side``.
        unit: what was split by; anything but ``"patient"`` was chosen because there are too few patients.
    """
    sides: dict[str, set[str]] = defaultdict(set)
    for row in split:
        sides[str(row["patient"])].add(str(row["side"]))
    both = {patient: " and ".join(sorted(found)) for patient, found in sides.items() if len(found) > 1}
    text = "; ".join(f"patient {patient}: {found}" for patient, found in sorted(both.items()))[:LONGEST_TEXT]
    if both and unit != "patient":
        text += f". There are too few patients to split by, so it was by {unit}: the figures flatter"
    return Verdict(not both, text or f"{len(sides)} patients, each on one side", {"patients": len(sides)})


def beats_majority(training: Mapping[str, Any]) -> Verdict:
    """Whether a model is better than always answering the larger class; takes a training's figures."""
    if "better_than_majority" not in training:
        return Verdict(False, "the training recorded no figures")
    share, accuracy = training.get("majority_share"), training.get("val_acc")
    text = f"validation accuracy {_number(accuracy)}, {_number(share)} for always the larger class"
    return Verdict(bool(training["better_than_majority"]), f"{text}, AUC {_number(training.get('val_auc'))}")


def beats_chance(figures: Iterable[Mapping[str, Any]]) -> Verdict:
    """Whether the test patches' ROC AUC lies above 0.5 by its whole interval."""
    auc = next((row for row in figures if row.get("figure") == "roc_auc"), {})
    if auc.get("value") is None:
        return Verdict(False, f"there is no AUC: {auc.get('remark') or 'nothing was evaluated'}")
    low, interval = auc.get("low (95 %)"), "no interval"
    if low is not None:
        interval = f"95 % interval from {low:.3f}"
    least = auc["value"] if low is None else low
    return Verdict(least > 0.5, f"AUC {auc['value']:.3f} ({interval}), chance is 0.5", {"low": least})


def report_is_complete(folder: Path, test_slides: Collection[str]) -> Verdict:
    """Whether a report's files are all there and its figures speak of every test slide."""
    missing = [
        name
        for name in ("report.html", "metrics.json")
        if not (folder / name).is_file() or not (folder / name).stat().st_size
    ]
    if missing:
        return Verdict(False, f"{', '.join(missing)} missing in {folder}")
    try:
        judged = set(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["patch"]["per_slide"])
    except (ValueError, KeyError, TypeError) as error:
        return Verdict(False, f"{folder / 'metrics.json'} does not read ({error})")
    absent = sorted(set(test_slides) - judged)
    text = f"without {', '.join(absent)}" if absent else f"all {len(judged)} test slides are in it"
    return Verdict(not absent, text[:LONGEST_TEXT], {"test_slides": len(judged)})


def chain_breaks(
    chain: Sequence[str], made: Mapping[str, str], expected: Mapping[str, str]
) -> dict[str, str]:
    """Assets of a level that do not fit what they were made from as it is now: asset -> why.

    Args:
        chain: assets, each made from the one before.
        made: asset -> the data version it has.
        expected: asset -> the version its own parameters would give it now.
    """
    breaks: dict[str, str] = {}
    above = "set of slides' regions"
    for asset in chain:
        if asset in made:
            if expected[asset] != made[asset]:
                breaks[asset] = f"was made from another {above} than there is now"
            elif above in breaks:
                breaks[asset] = f"was made from {above}, which is itself out of date"
        above = asset
    return breaks


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
