"""Laws of the preference table: round trip, atomic append, refusals."""

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, episodes, make_episodes, preferences, random_preferences

from prefrl.core import SegmentRefs
from prefrl.data.preferences import Preferences, append_preferences, preferences_path, read_preferences
from prefrl.data.storage import write_dataset
from prefrl.errors import DamagedFile, InvalidData, PrefrlError


def columns(table: Preferences) -> list[np.ndarray]:
    places = [getattr(refs, f) for refs in (table.first, table.second) for f in ("episode", "start", "length")]
    return [*places, table.p_first, table.rater, np.array(table.teacher, dtype=object), table.time]


def same_preferences(one: Preferences, two: Preferences) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(columns(one), columns(two), strict=True))


@pytest.fixture
def labelled(tmp_path):
    """A dataset of nine steps with three answers."""
    data = make_episodes([4, 5])
    answers = random_preferences(data, 3, np.random.default_rng(0))
    write_dataset(tmp_path / "set", data)
    append_preferences(tmp_path / "set", answers)
    return tmp_path / "set", data, answers


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_appended_answers_come_back_to_the_bit(tmp_path_factory, draw):
    """Reading gives all answers in the order in which they were appended."""
    path = tmp_path_factory.mktemp("data") / "set"
    data = draw.draw(episodes())
    parts = [draw.draw(preferences(data)) for _ in range(2)]
    write_dataset(path, data)
    for part in parts:
        append_preferences(path, part)
    assert same_preferences(read_preferences(path), Preferences.concat(parts))


@given(episodes(), SEEDS)
def test_comparisons_are_the_segments_that_the_answers_refer_to(data, seed):
    """Answers are references: the segments are cut from the dataset, in order, with label and rater."""
    answers = random_preferences(data, 4, np.random.default_rng(seed))
    found = answers.comparisons(data)
    for side, refs in ((found.first, answers.first), (found.second, answers.second)):
        assert torch.equal(side.observations, data.segments(refs).observations)
        assert torch.equal(side.actions, data.segments(refs).actions)
    assert found.p_first.tolist() == answers.p_first.tolist()
    assert found.rater.tolist() == answers.rater.tolist()


@given(episodes(), SEEDS)
def test_rows_and_joins_undo_each_other(data, seed):
    """Cutting a table in two and joining the halves changes nothing."""
    answers = random_preferences(data, 5, np.random.default_rng(seed))
    assert same_preferences(Preferences.concat([answers[:2], answers[2:]]), answers)
    assert same_preferences(answers[np.array([True, False, True, False, True])], answers[::2])


@pytest.mark.parametrize("label", [-0.1, 1.5, np.nan])
def test_labels_outside_the_unit_interval_are_refused(label):
    """p_first is in [0, 1]; a skipped question (NaN) is not data."""
    one = random_preferences(make_episodes([4]), 1, np.random.default_rng(0))
    with pytest.raises(InvalidData, match="p_first"):
        replace(one, p_first=np.array([label]))


@pytest.mark.parametrize("changes", [{"rater": np.zeros(2)}, {"teacher": ()}, {"time": np.array([np.inf])}])
def test_incomplete_answers_are_refused(changes):
    """Each answer has a rater, a teacher and a finite time."""
    with pytest.raises(InvalidData, match="Preferences"):
        replace(random_preferences(make_episodes([4]), 1, np.random.default_rng(0)), **changes)


@pytest.mark.parametrize(
    ("place", "named"), [((0, 2, 3), "episode 0, which has only 4"), ((7, 0, 1), "only 2 episodes")]
)
def test_answers_about_segments_that_are_not_there_are_not_stored(labelled, place, named):
    """A segment past its episode's end, or of an unknown episode, is refused before anything is written."""
    path, data, answers = labelled
    wrong = replace(answers[:1], second=SegmentRefs(*([value] for value in place)))
    with pytest.raises(InvalidData, match=named):
        append_preferences(path, wrong)
    with pytest.raises(InvalidData, match=named):
        wrong.comparisons(data)
    assert same_preferences(read_preferences(path), answers)


def test_teachers_that_are_not_json_are_not_stored(labelled):
    """Who answered must be readable later."""
    path, _, answers = labelled
    with pytest.raises(InvalidData, match="JSON"):
        append_preferences(path, replace(answers[:1], teacher=("oracle",)))


def test_a_full_disk_leaves_the_answers_that_were_there(labelled, monkeypatch):
    """No space left: the old table stays, and a retry succeeds."""
    path, _, answers = labelled

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("prefrl.files.os.fsync", full)
        with pytest.raises(PrefrlError, match=r"preferences\.parquet.*No space left"):
            append_preferences(path, answers[:1])
    assert same_preferences(read_preferences(path), answers)
    append_preferences(path, answers[:1])
    assert len(read_preferences(path)) == 4


def test_a_dataset_without_answers_says_how_to_get_some(tmp_path):
    """No preferences yet, and no dataset at all, are different errors."""
    write_dataset(tmp_path / "set", make_episodes([4]))
    with pytest.raises(DamagedFile, match="prefrl label"):
        read_preferences(tmp_path / "set")
    with pytest.raises(DamagedFile, match=r"info\.json is missing"):
        append_preferences(tmp_path / "none", random_preferences(make_episodes([4]), 1, np.random.default_rng(0)))


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_table_is_named(labelled, kept):
    """Cut anywhere, the error names the file."""
    file = preferences_path(labelled[0])
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DamagedFile, match=r"preferences\.parquet"):
        read_preferences(labelled[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.replace_schema_metadata({"prefrl_preferences_version": "2"}), "version 2, expected 1"),
        (lambda t: t.replace_schema_metadata(None), "none, expected 1"),
        (lambda t: t.drop_columns(["rater"]), "'rater'"),
        (lambda t: t.set_column(6, "p_first", pa.array([0, 1, 1])), "p_first"),
        (
            lambda t: t.set_column(6, "p_first", pa.array([0.0, 1.0, 1.1])),
            r"preferences\.parquet.*p_first.*1\.1",
        ),
        (lambda t: t.set_column(1, "first_start", pa.array([0, 0, -1])), r"preferences\.parquet.*start"),
    ],
)
def test_tables_of_another_version_or_content_are_refused(labelled, change, named):
    """Another version, missing or retyped columns, labels and places that cannot be: the error says which."""
    file = preferences_path(labelled[0])
    pq.write_table(change(pq.ParquetFile(file).read(use_threads=False)), file)
    with pytest.raises(InvalidData, match=named):
        read_preferences(labelled[0])


def test_the_table_holds_references_only(labelled):
    """Places, label, rater, teacher and time: no observation is copied."""
    path, _, answers = labelled
    table = pq.ParquetFile(preferences_path(path)).read(use_threads=False)
    places = [f"{side}_{part}" for side in ("first", "second") for part in ("episode", "start", "length")]
    assert table.column_names == [*places, "p_first", "rater", "teacher", "time"]
    assert json.loads(table.column("teacher")[0].as_py()) == json.loads(answers.teacher[0])
