"""The table of benchmarks: nothing measured is lost in it, and what is missed is said to be missed."""

from __future__ import annotations

import json

import pytest

from wsi_assets_tests.benchmarks import __main__ as bench
from wsi_assets_tests.benchmarks import rows

ROWS = [
    rows.at_least("extraction, against decoding", 1774.0, 2062.0, "patches/s", 0.75),
    rows.times_as_fast("index, against a loop", 0.1, 9.9, 100),
    rows.below("one look", 4.9, "s", 5, against=0.1),
    rows.below("memory of a worker", 600.0, "MB", 600),
    rows.Row("a figure without a bar", 17.0, "s"),
]


def test_a_bar_is_met_from_its_own_value_on_and_below_it_where_it_is_a_limit():
    assert [row.met for row in ROWS] == [True, False, True, False, None]
    assert rows.at_least("even", 0.75, 1.0, "patches/s", 0.75).met


def test_a_ratio_is_that_of_its_two_sides():
    assert [row.ratio for row in ROWS] == pytest.approx([1774 / 2062, 99, 49, None, None])


@pytest.mark.parametrize("show", [rows.table, lambda found: rows.markdown(found, rows.machine())])
def test_every_row_is_shown_with_both_sides_and_a_miss_is_called_one(show):
    lines = [line for line in show(ROWS).splitlines() if line.strip(" |")]
    for row in ROWS:
        (line,) = (line for line in lines if row.what in line)
        assert ("MISSED" in line) == (row.met is False)
        for cell in row.cells():
            assert cell in line


def test_rows_come_back_from_json_as_they_were(tmp_path):
    rows.write(tmp_path / "rows.json", ROWS)
    assert rows.read(tmp_path / "rows.json") == ROWS


def measured(monkeypatch, tmp_path, found: dict) -> tuple[int, dict, str]:
    """Exit status, JSON and Markdown of a run whose benchmarks find this."""
    monkeypatch.setattr(bench, "BENCHMARKS", tuple(found))
    monkeypatch.setattr(bench, "measure", lambda name, folder: found[name])
    status = bench.main(["--out", str(tmp_path)])
    return status, json.loads((tmp_path / "bench.json").read_text()), (tmp_path / "bench.md").read_text()


def test_a_missed_bar_is_no_failure_and_all_is_one_table(monkeypatch, tmp_path, capsys):
    status, stored, page = measured(monkeypatch, tmp_path, {"first": ROWS[:2], "second": ROWS[2:]})
    assert status == 0
    assert [row["what"] for row in stored["rows"]] == [row.what for row in ROWS]
    assert stored["machine"]["versions"].keys() == set(rows.VERSIONS)
    assert page.count("| what |") == 1
    assert "2 of 4 bars met, 2 missed" in capsys.readouterr().out


def test_a_benchmark_that_did_not_finish_is_a_failure_and_named(monkeypatch, tmp_path, capsys):
    status, stored, page = measured(monkeypatch, tmp_path, {"first": ROWS, "second": None})
    assert status == 1
    assert stored["unfinished"] == ["second"]
    assert "Did not finish: second" in page
    assert "Did not finish: second" in capsys.readouterr().out


def test_a_benchmark_that_raises_or_writes_nothing_did_not_finish(tmp_path, capfd):
    assert bench.measure("no_such_benchmark", tmp_path) is None
    assert "No module named" in capfd.readouterr().err
    assert bench.measure("rows", tmp_path) is None, "a module that measures nothing"
