"""Files are whole or absent, and a pickle cannot run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.errors import SlideError, WsiAssetsError
from wsi_assets.files import (
    digest,
    publish_file,
    publish_folder,
    read_plain_pickle,
    write_plain_pickle,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=plain)
def test_plain_values_survive_the_pickle(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("pickles") / "value.pkl"
    write_plain_pickle(path, value)
    assert read_plain_pickle(path) == value
    assert pickle.loads(path.read_bytes()) == value


class Trap:
    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(tmp_path):
    trap = Trap()
    trap.path = str(tmp_path / "ran")
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps(trap))
    with pytest.raises(WsiAssetsError, match="mkdir") as caught:
        read_plain_pickle(evil)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)
    assert str(evil) in str(caught.value)


def test_a_damaged_pickle_is_one_clear_line(tmp_path):
    path = tmp_path / "half.pkl"
    path.write_bytes(pickle.dumps(list(range(1000)))[:100])
    with pytest.raises(WsiAssetsError, match="not a plain pickle"):
        read_plain_pickle(path)


def test_a_value_with_a_class_in_it_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="plain"):
        write_plain_pickle(tmp_path / "value.pkl", {"entry": Trap})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), publish_file(path) as aside:
        aside.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "report"
    for content in ("first", "second"):
        with publish_folder(target) as aside:
            (aside / content).write_text(content)
    assert [file.name for file in target.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), publish_folder(target) as aside:
        (aside / "third").write_text("third")
        raise RuntimeError
    assert [file.name for file in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_the_digest_ignores_the_order_of_a_mapping_and_nothing_else():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest(1) != digest("1")


def test_an_error_names_file_fault_and_remedy_in_one_line_and_survives_a_process_pool():
    error = SlideError("does not\n open.", path="slide.svs", remedy="Copy it again")
    assert str(error) == "slide.svs: does not open. Copy it again"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (SlideError, str(error))


@pytest.mark.parametrize("publish", [publish_file, publish_folder])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, publish):
    import subprocess
    import sys

    script = (
        "import os, sys, time\n"
        f"from wsi_assets.files import {publish.__name__} as publish\n"
        "with publish(sys.argv[1]) as aside:\n"
        "    print(aside, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("killed", "living")
    ]
    left, kept = (Path(writer.stdout.readline().strip()) for writer in writers)
    writers[0].kill()
    writers[0].wait()
    assert left.exists()
    with publish(tmp_path / "mine") as aside:
        (aside.write_text if publish is publish_file else (aside / "page").write_text)("mine")
    assert not left.exists()
    assert kept.exists()
    writers[1].communicate("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "mine"]
