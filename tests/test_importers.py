"""Laws of the importers, on made-up files, and on real human preferences where those are at hand."""

import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
from strategies import same_episodes

from prefrl.data.importers import IMPORTERS, import_arrays, import_human_control, import_npz_preferences
from prefrl.data.preferences import read_preferences
from prefrl.data.storage import read_dataset
from prefrl.errors import DamagedFile, InvalidData

HUMAN = Path(os.environ.get("PREFRL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "human_control_prefs"


def pairs(n=3, T=4, D=2, A=1, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {f"obs_{i}": rng.normal(size=(n, T, D)) for i in (1, 2)}
    arrays |= {f"action_{i}": rng.normal(size=(n, T, A)) for i in (1, 2)}
    return {**arrays, "label": np.resize([1.0, 0.0, 0.5], n)}


def flat(N=6, D=2, A=1) -> dict[str, np.ndarray]:
    """Three steps to a terminal state, two to a time limit, one that the end of the file cuts."""
    values = np.arange(N * D, dtype=float).reshape(N, D)
    return {
        "observations": values,
        "actions": values[:, :A],
        "rewards": np.arange(N, dtype=float),
        "terminals": np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], dtype=bool),
        "next_observations": values + 100,
    }


def save(file: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(file, **arrays)
    return file


def check_pairs(arrays: dict[str, np.ndarray], out: Path) -> None:
    """The comparisons are the file's pairs without the last action; label 1 prefers the second."""
    data, answers = read_dataset(out), read_preferences(out)
    found = answers.comparisons(data)
    for side, number in ((found.first, 1), (found.second, 2)):
        np.testing.assert_array_equal(side.observations, arrays[f"obs_{number}"].astype(np.float32))
        np.testing.assert_array_equal(side.actions, arrays[f"action_{number}"][:, :-1].astype(np.float32))
        assert bool(side.mask.all())
        assert side.true_reward is None
    np.testing.assert_allclose(found.p_first, 1 - arrays["label"])


def test_imported_pairs_are_the_pairs_of_the_file(tmp_path):
    """Segments, end states and labels survive the way through the dataset."""
    arrays = pairs()
    data = import_npz_preferences(save(tmp_path / "p.npz", arrays), tmp_path / "set")
    check_pairs(arrays, tmp_path / "set")
    assert same_episodes(data, read_dataset(tmp_path / "set"))
    assert read_preferences(tmp_path / "set").p_first.tolist() == [0.0, 1.0, 0.5]


@pytest.mark.skipif(not HUMAN.is_dir(), reason=f"no human preferences at {HUMAN} (set PREFRL_TEST_DATA)")
@pytest.mark.parametrize("file", ["hopper-medium-expert-v2_num100_human_eval.npz", "Lift_num100_q50_human_eval.npz"])
def test_real_human_preferences_can_be_imported(tmp_path, file):
    """The files of Preference Transformer's human raters become comparisons that say the same."""
    import_human_control(HUMAN / file, tmp_path / "set")
    with np.load(HUMAN / file, allow_pickle=False) as archive:
        check_pairs(dict(archive), tmp_path / "set")


@pytest.mark.skipif(not HUMAN.is_dir(), reason=f"no human preferences at {HUMAN} (set PREFRL_TEST_DATA)")
def test_every_real_file_can_be_imported(tmp_path):
    """Three tasks, people's and scripted labels: 100 pairs to learn from, 10 to judge by."""
    files = sorted(HUMAN.glob("*.npz"))
    for file in files:
        import_human_control(file, tmp_path / file.stem)
        assert len(read_preferences(tmp_path / file.stem)) == (10 if "eval" in file.stem else 100)
    assert len(files) == 12


def test_human_preferences_are_those_of_the_general_importer(tmp_path):
    """One layout, two names: the episodes are equal, and the answers say whose they are."""
    file = save(tmp_path / "p.npz", pairs())
    general, human = (
        function(file, tmp_path / function.__name__) for function in (import_npz_preferences, import_human_control)
    )
    assert same_episodes(general, human)
    check_pairs(pairs(), tmp_path / "import_human_control")
    answers = read_preferences(tmp_path / "import_human_control")
    assert {json.loads(text)["source"] for text in answers.teacher} == {"Kim et al. 2023, arXiv 2303.00957"}


def test_people_give_no_soft_labels(tmp_path):
    """0.3 is refused as a person's answer, and is an answer in the general layout."""
    file = save(tmp_path / "p.npz", {**pairs(), "label": np.array([0.0, 0.3, 1.0])})
    with pytest.raises(InvalidData, match=r"label holds 0\.3"):
        import_human_control(file, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    import_npz_preferences(file, tmp_path / "set")
    np.testing.assert_allclose(read_preferences(tmp_path / "set").p_first, [1.0, 0.7, 0.0])


@pytest.mark.parametrize("name", ["nowhere.npz", ""])
def test_missing_human_preferences_can_be_found(tmp_path, name):
    """No file, or a folder: the error says what the file is, and where the authors publish it."""
    with pytest.raises(DamagedFile, match=r"2303\.00957.*github\.com/jhejna/inverse-preference-learning"):
        import_human_control(tmp_path / name, tmp_path / "set")


@pytest.mark.skipif(not HUMAN.is_dir(), reason=f"no human preferences at {HUMAN} (set PREFRL_TEST_DATA)")
def test_scripted_labels_prefer_the_faster_hopper(tmp_path):
    """The label is read the right way round: scripted raters prefer the faster segment."""
    import_npz_preferences(HUMAN / "hopper-medium-expert-v2_num100_script_train.npz", tmp_path / "set")
    found = read_preferences(tmp_path / "set").comparisons(read_dataset(tmp_path / "set"))
    faster = found.first.observations[..., 5].mean(1) > found.second.observations[..., 5].mean(1)
    assert ((found.p_first > 0.5) == faster)[found.p_first != 0.5].float().mean() > 0.95


def test_flat_arrays_with_next_observations_keep_every_step(tmp_path):
    """Episodes end at terminals, timeouts and the file's end; end states are the next observations."""
    arrays = flat()
    data = import_arrays(save(tmp_path / "d.npz", arrays), tmp_path / "set")
    assert data.lengths.tolist() == [3, 2, 1]
    assert data.terminated.tolist() == [True, False, False]
    assert data.returns().tolist() == [3.0, 7.0, 5.0]
    np.testing.assert_array_equal(data.actions, arrays["actions"])
    ends = data.observations[data.observation_offsets[1:] - 1]
    np.testing.assert_array_equal(ends, arrays["next_observations"][[2, 4, 5]])
    starts = np.delete(data.observations, data.observation_offsets[1:] - 1, axis=0)
    np.testing.assert_array_equal(starts, arrays["observations"])
    assert same_episodes(data, read_dataset(tmp_path / "set"))


def test_flat_arrays_without_next_observations_give_up_the_last_step(tmp_path):
    """The last observation becomes the end state, its action and reward go, and no end counts as terminal."""
    arrays = {name: array for name, array in flat().items() if name != "next_observations"}
    data = import_arrays(save(tmp_path / "d.npz", arrays), tmp_path / "set")
    assert data.lengths.tolist() == [2, 1]
    assert not data.terminated.any()
    assert data.returns().tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(data.observations, arrays["observations"][:5])
    np.testing.assert_array_equal(data.actions, arrays["actions"][[0, 1, 3]])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label": np.array([0.0, 2.0, 1.0])}, "label"),
        ({"label": np.array([0.0, 1.0])}, "do not fit"),
        ({"label": np.array(1.0)}, "do not fit"),
        ({"label": np.array(["0", "1", "1"])}, "label.*<U1"),
        ({"obs_2": np.zeros((3, 4, 5))}, r"\(3, 4, 2\).*\(3, 4, 5\)"),
        ({"action_1": np.zeros((3, 5, 1)), "action_2": np.zeros((3, 5, 1))}, "do not fit"),
        ({"obs_1": np.full((3, 4, 2), np.nan)}, "observations of episode 0"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, change, named):
    """Labels outside [0, 1], other sizes, NaN: the error says which, and no dataset is made."""
    file = save(tmp_path / "p.npz", {**pairs(), **change})
    for importer in (import_npz_preferences, import_human_control):
        with pytest.raises(InvalidData, match=named):
            importer(file, tmp_path / "set")
        assert not (tmp_path / "set").exists()


def test_files_that_lack_arrays_or_rows_are_refused(tmp_path):
    """The error says what the file holds and what is needed."""
    file = save(tmp_path / "p.npz", {"obs_1": np.zeros((1, 2, 1))})
    with pytest.raises(DamagedFile, match=r"p\.npz lacks obs_2.*it holds obs_1"):
        import_npz_preferences(file, tmp_path / "set")
    with pytest.raises(DamagedFile, match="rows"):
        import_arrays(save(tmp_path / "d.npz", {**flat(), "actions": np.zeros((5, 1))}), tmp_path / "set")
    with pytest.raises(DamagedFile, match="missing"):
        import_arrays(tmp_path / "nowhere.npz", tmp_path / "set")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archives_are_named(tmp_path, share):
    """Cut anywhere, the error names the file."""
    file = save(tmp_path / "p.npz", pairs())
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFile, match=r"p\.npz"):
        import_npz_preferences(file, tmp_path / "set")


def test_a_damaged_entry_is_named(tmp_path):
    """A flipped byte in an array fails the archive's checksum."""
    file = save(tmp_path / "p.npz", pairs(n=20, T=30))
    content = bytearray(file.read_bytes())
    content[1000] ^= 255
    file.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"p\.npz"):
        import_npz_preferences(file, tmp_path / "set")


def test_every_importer_takes_a_file_and_a_folder():
    """The table is what the command line offers: a function of (file, out) and one line of description."""
    for function, description in IMPORTERS.values():
        assert list(inspect.signature(function).parameters)[:2] == ["file", "out"]
        assert "\n" not in description
