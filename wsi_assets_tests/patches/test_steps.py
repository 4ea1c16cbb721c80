"""Facts of handing work out: who reads, how much is under way, and that order is the plan's."""

from __future__ import annotations

from concurrent.futures import Executor, Future

import pytest

from wsi_assets.patches import ExtractionOptions, plan_patches
from wsi_assets.patches import steps as steps_module
from wsi_assets.patches.extract import extract
from wsi_assets.patches.steps import carried_out, steps


class Stalling(Executor):
    """Workers of which none ends a task before somebody waits for it."""

    def __init__(self, workers: int):
        self.workers, self.tasks, self.submitted = workers, [], 0
        Stalling.latest = self

    def submit(self, function, *args):
        executor = self

        class Late(Future):
            def result(self, timeout=None):
                if not self.done():
                    executor.tasks.remove(self)
                    self.set_result(function(*args))
                return super().result()

        self.tasks.append(Late())
        self.submitted += 1
        return self.tasks[-1]


@pytest.mark.parametrize("workers", [2, 3])
def test_this_process_reads_while_others_are_slow_and_no_more_waits_than_is_said(
    entries, monkeypatch, workers
):
    monkeypatch.setattr(steps_module, "process_pool", Stalling)
    monkeypatch.setattr(steps_module, "_WORTH_A_POOL", 0)
    monkeypatch.setattr("wsi_assets.patches.plan.PART_PIXELS", 8 * 128 * 128)
    here, waiting = [], []

    def extract_here(task):
        here.append(task)
        return extract(task)

    monkeypatch.setattr(steps_module, "extract", extract_here)
    plan = plan_patches(entries, ExtractionOptions(codec="qoi", extraction_workers=workers))
    planned = 0

    def counted():
        nonlocal planned
        for step in steps(plan, "lmdb", []):
            planned += 1
            yield step

    positions, values = [], []
    for taken, (step, encoded) in enumerate(carried_out(counted(), plan, None)):
        waiting.append(planned - taken)
        assert len(Stalling.latest.tasks) <= 2 * (workers - 1)
        positions += step.positions.tolist()
        values += map(bytes, encoded.values)
    assert Stalling.latest.workers == workers - 1
    assert positions == [number for step in steps(plan, "lmdb", []) for number in step.positions.tolist()]
    assert sorted(positions) == list(range(len(plan)))
    assert max(waiting) <= 3 * workers + 2, "the window, and the step that is to come into it"
    assert Stalling.latest.submitted + len(here) == planned
    assert min(Stalling.latest.submitted, len(here)) > planned / 8
    alone = plan_patches(entries, ExtractionOptions(codec="qoi", extraction_workers=1))
    expected = [value for _, e in carried_out(steps(alone, "lmdb", []), alone, None) for value in e.values]
    assert values == expected
