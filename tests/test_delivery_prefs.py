"""Laws of the importer of people's preferences in the delivery task, on a small board and on the real files."""

import json

import numpy as np
import pytest
import torch
from small_mdps import CONDITIONS, DATA, TRUE_WEIGHTS, delivery, needs_board
from strategies import same_episodes

from envs.delivery import BOARD
from envs.grid_world import ACTIONS, GridWorld
from prefrl.cli import main
from prefrl.data import paired_segments
from prefrl.data.delivery_prefs import MOVES, import_delivery_prefs, read_npy, replay
from prefrl.data.preferences import read_preferences
from prefrl.data.storage import read_dataset
from prefrl.errors import ConfigError, DamagedFile, InvalidData, PrefrlError
from prefrl.solvers import rewards, trace_segments, trace_statistics, value_iteration

SMALL = [[0, 2, 4, 1], [0, 0, 0, 6], [3, 0, 8, 0]]  # house at 1, coin at 2, goal at 3; sheep at 8, house in mud at 10
UP, DOWN, LEFT, RIGHT = map(list, MOVES.tolist())
NONE = [0, 0]
WALL = [[1, 1], UP, RIGHT, UP]  # the house above stops it
GOAL = [[0, 2], RIGHT, NONE, NONE]
SHEEP = [[1, 0], DOWN, LEFT, UP]  # goes on after the end
RIM = [[0, 0], LEFT, UP, DOWN]
MUD_HOUSE = [[1, 1], RIGHT, DOWN, RIGHT]
LATE_GOAL = [[1, 2], RIGHT, UP, NONE]
PAIRS = {"Alpha": [[WALL, GOAL], [SHEEP, RIM]], "Beta": [[MUD_HOUSE, LATE_GOAL]]}
LABELS = {"Alpha": [1.0, 0.5], "Beta": [0.0]}
# by hand, in the order of the episodes: first WALL, SHEEP, MUD_HOUSE, then GOAL, RIM, LATE_GOAL
STATES = [5, 5, 6, 2, 4, 8, 5, 6, 6, 7, 2, 3, 0, 0, 0, 4, 6, 7, 3]
STEPS = [0, 3, 0, 1, 3, 1, 3, 3, 2, 0, 1, 3, 0]


def file(folder, condition, what):
    return folder / "human_data" / f"{condition}_full_filtered_{what}.npy"


@pytest.fixture
def folder(tmp_path):
    """The authors' layout: two conditions on the small board."""
    folder = tmp_path / "authors"
    for part in ("human_data", "delivery_mdp"):
        (folder / part).mkdir(parents=True)
    (folder / "delivery_mdp" / "board.json").write_text(json.dumps(SMALL))
    for condition, pairs in PAIRS.items():
        np.save(file(folder, condition, "segment_pairs"), np.array(pairs))
        np.save(file(folder, condition, "Y"), np.array(LABELS[condition]))
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The dataset of all real files."""
    out = tmp_path_factory.mktemp("real") / "set"
    import_delivery_prefs(DATA, out)
    return out


def refused(folder, tmp_path, kind, match, **options):
    """The import is refused, and nothing is there afterwards."""
    with pytest.raises(kind, match=match):
        import_delivery_prefs(folder, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


# what becomes of the files


def test_segments_become_the_episodes_that_the_board_dictates(folder, tmp_path):
    """States, actions and ends are those found by hand; nothing comes after a goal or a sheep."""
    data = import_delivery_prefs(folder, tmp_path / "set")
    assert data.observations[:, 0].tolist() == STATES
    assert data.actions[:, 0].tolist() == STEPS
    assert data.lengths.tolist() == [3, 1, 3, 1, 3, 2]
    assert data.terminated.tolist() == [False, True, False, True, False, True]
    assert data.succeeded().tolist() == [False, False, False, True, False, True]


def test_the_dataset_on_disk_is_what_was_returned(folder, tmp_path):
    """An ordinary dataset, which says where it is from, how much was cut, and that it has no reward."""
    data = import_delivery_prefs(folder, tmp_path / "set")
    assert same_episodes(data, read_dataset(tmp_path / "set"))
    assert not data.has_true_reward
    assert data.env["id"] == "prefrl/Delivery-v0"
    assert data.env["segments_cut"] == {"Alpha": 1, "Beta": 0}
    assert np.array_equal(data.env["board"], SMALL)


def test_answers_are_those_of_the_people(folder, tmp_path):
    """Label 0 prefers the first, 1 the second, 0.5 neither; the rater is the number of the condition."""
    data, answers = import_delivery_prefs(folder, tmp_path / "set"), read_preferences(tmp_path / "set")
    assert answers.p_first.tolist() == [0.0, 0.5, 1.0]
    assert answers.rater.tolist() == [0, 0, 1]
    assert [json.loads(text)["condition"] for text in answers.teacher] == ["Alpha", "Alpha", "Beta"]
    assert {json.loads(text)["name"] for text in answers.teacher} == {"people"}
    found = answers.comparisons(data)
    assert found.first.mask.sum(1).tolist() == [3, 1, 3]
    assert found.second.mask.sum(1).tolist() == [1, 3, 2]
    assert found.second.terminal.tolist() == [True, False, True]


def test_human_data_itself_can_be_named(folder, tmp_path):
    """The folder of the pairs, with delivery_mdp beside it, says the same as the one above."""
    above = import_delivery_prefs(folder, tmp_path / "above")
    below = import_delivery_prefs(folder / "human_data", tmp_path / "below")
    assert np.array_equal(above.observations, below.observations)
    assert above.env | {"imported_from": "human_data"} == below.env


def test_conditions_are_chosen_and_numbered_in_the_order_given(folder, tmp_path):
    """A choice of one imports its pairs alone; a choice of both numbers them as given."""
    alone = import_delivery_prefs(folder, tmp_path / "alone", conditions=["Beta"])
    assert alone.observations[:, 0].tolist() == [5, 6, 6, 7, 6, 7, 3]
    both = import_delivery_prefs(folder, tmp_path / "both", conditions=["Beta", "Alpha"])
    assert both.env["conditions"] == ["Beta", "Alpha"]
    assert read_preferences(tmp_path / "both").p_first.tolist() == [1.0, 0.0, 0.5]
    assert read_preferences(tmp_path / "both").rater.tolist() == [0, 1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_replays_are_what_the_environment_does(seed):
    """On random boards random moves lead where ``GridWorld`` goes, and end where it does."""
    rng = np.random.default_rng(seed)
    env = GridWorld(rng.choice(12, p=[0.4, 0.05, 0.1, 0.05, *[0.05] * 8], size=(4, 5)), true_weights=[0] * 6)
    starts = rng.choice(np.flatnonzero(env.tables().start), size=(60, 2))
    actions = rng.integers(4, size=(60, 2, 6))
    start = np.stack(np.divmod(starts, 5), -1)[:, :, None]  # (n, 2, 1, 2)
    found = replay(env.board, np.concatenate([start, np.array(ACTIONS)[actions]], axis=2))
    for pair in np.ndindex(60, 2):
        env.reset(options={"state": int(starts[pair])})
        for t, action in enumerate(actions[pair]):
            if not found.mask[pair][t]:
                assert found.terminated[pair]
                break
            state, _, terminated, _, info = env.step(int(action))
            assert (state, info["success"]) == (found.states[pair][t + 1], found.success[pair][t])
            assert terminated == (not found.mask[pair][t + 1 :].any() and found.terminated[pair])


# the real files


@needs_board
def test_all_real_preferences_are_imported(everything):
    """Nine conditions, 9630 preferences, none of a segment without a step, on the board of the environment."""
    data, answers = read_dataset(everything), read_preferences(everything)
    assert sorted(data.env["conditions"]) == sorted(CONDITIONS)
    assert len(answers) == 9630
    assert len(data) == 2 * 9630
    assert np.bincount(answers.rater).tolist() == [2532, 437, 497, 1793, 442, 2531, 434, 491, 473]
    assert sum(data.env["segments_cut"].values()) == 449
    assert np.array_equal(data.env["board"], BOARD)


@needs_board
@pytest.mark.parametrize("condition", CONDITIONS)
def test_real_segments_have_the_published_statistics(everything, condition):
    """Second minus first of partial return, V*(start), V*(end) differ by 0 from the authors'; so do the labels."""
    data, answers, mdp = read_dataset(everything), read_preferences(everything), delivery()
    chosen = answers[answers.rater == data.env["conditions"].index(condition)]
    found, values = chosen.comparisons(data), value_iteration(mdp, rewards(mdp, TRUE_WEIGHTS), gamma=1.0)
    sides = []
    for side in (found.first, found.second):
        states, actions = side.observations[..., 0].long(), side.actions[..., 0].long()
        trace = trace_segments(mdp, states[:, 0], actions, mask=side.mask)
        assert torch.equal(trace.end, states[:, -1])  # padding repeats the end
        assert torch.equal(mdp.terminal[trace.end], side.terminal)
        sides.append(trace_statistics(trace, TRUE_WEIGHTS, *values))
    one, two = sides
    stored = np.load(file(DATA, condition, "X"), allow_pickle=False)
    assert np.abs(torch.stack([two[i] - one[i] for i in range(3)], -1).numpy() - stored).max() == 0
    assert np.array_equal(1 - chosen.p_first, np.load(file(DATA, condition, "Y"), allow_pickle=False))


# what is refused


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        ([[0, 1], UP, UP, UP], "starts on a house"),
        ([[0, 4], UP, UP, UP], "off the board"),
        ([[-1, 0], UP, UP, UP], "off the board"),
        ([[2**60, 0], UP, UP, UP], "off the board"),
        ([[0, 3], UP, UP, UP], "starts on a goal or a sheep"),
        ([[2, 0], NONE, NONE, NONE], "starts on a goal or a sheep"),
        ([[0, 0], DOWN, NONE, UP], "as move 2 without a terminal state"),
        ([[0, 0], DOWN, DOWN, NONE], None),
        ([[0, 0], DOWN, RIGHT, NONE], "as move 3 without a terminal state"),
        ([[0, 0], NONE, NONE, NONE], "as move 1 without a terminal state"),
        ([[0, 0], [1, 1], UP, UP], "none of"),
        ([[0, 0], [2, 0], UP, UP], "none of"),
    ],
)
def test_segments_that_cannot_be_are_refused(folder, tmp_path, segment, said):
    """File, row and side are named; padding stands only behind a terminal state."""
    np.save(file(folder, "Alpha", "segment_pairs"), np.array([[WALL, GOAL], [SHEEP, segment]]))
    if said is None:
        assert import_delivery_prefs(folder, tmp_path / "set").lengths[4] == 2
    else:
        refused(folder, tmp_path, InvalidData, rf"Alpha_\S+_pairs\.npy: the second segment of row 1 .*{said}")


@pytest.mark.parametrize(
    ("what", "array", "kind", "said"),
    [
        ("segment_pairs", np.zeros((2, 2, 4, 3), int), DamagedFile, r"shape \(2, 2, 4, 3\)"),
        ("segment_pairs", np.zeros((2, 2, 4), int), DamagedFile, r"\(n, 2, 4, 2\)"),
        ("segment_pairs", np.zeros((0, 2, 4, 2), int), DamagedFile, "n >= 1"),
        ("segment_pairs", np.array(PAIRS["Alpha"], float), DamagedFile, "type float64"),
        ("segment_pairs", np.array([[WALL, GOAL], None], dtype=object), DamagedFile, "cannot be read"),
        ("Y", np.array([1.0]), DamagedFile, r"shape \(1,\).*expected numbers \(2,\)"),
        ("Y", np.array([[1.0], [0.0]]), DamagedFile, r"shape \(2, 1\)"),
        ("Y", np.array(["0", "1"]), DamagedFile, "type <U1"),
        ("Y", np.array([0.0, 0.3]), InvalidData, "row 1 is 0.3"),
        ("Y", np.array([np.nan, 1.0]), InvalidData, "row 0 is nan"),
        ("Y", np.array([1, -1]), InvalidData, "row 1 is -1"),
        ("Y", np.array([0.0, {}], dtype=object), DamagedFile, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(folder, tmp_path, what, array, kind, said):
    """Another shape, type, number of rows or label, and Python objects: the file is named."""
    np.save(file(folder, "Alpha", what), array, allow_pickle=True)
    refused(folder, tmp_path, kind, rf"Alpha_full_filtered_{what}\.npy.*{said}")


@pytest.mark.parametrize("what", ["segment_pairs", "Y"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.99])
def test_truncated_files_are_named(folder, tmp_path, what, share):
    """Cut anywhere, the error names the file."""
    path = file(folder, "Beta", what)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(folder, tmp_path, DamagedFile, rf"Beta_full_filtered_{what}\.npy cannot be read")


@pytest.mark.filterwarnings("ignore:Reading .npy")  # a header may come to look like one of Python 2
def test_files_with_a_changed_byte_are_read_or_named(folder):
    """Whatever a byte of the header becomes, the file is an array, or it is damaged and named."""
    path = file(folder, "Beta", "Y")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refusals = []
    for at, value in zip(rng.integers(128, size=500), rng.integers(256, size=500), strict=True):
        path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
        try:
            assert read_npy(path).size <= 1
        except DamagedFile as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all("Beta_full_filtered_Y.npy cannot be read" in said for said in refusals)


@pytest.mark.parametrize("header", ["(" * 5000, "-" * 9000 + "1", "{'descr': '<i8', 'fortran_order': False}"])
def test_hostile_headers_are_refused(tmp_path, header):
    """A header that Python cannot even parse is a damaged file."""
    text = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(DamagedFile, match=r"a\.npy cannot be read"):
        read_npy(tmp_path / "a.npy")


def test_only_npy_files_are_read(tmp_path):
    """An archive or a pickle under the name of an array is refused."""
    np.savez(tmp_path / "a.npz", np.zeros(2))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(b"\x80\x04]\x94.")  # an empty list, pickled
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DamagedFile, match=rf"{name} cannot be read"):
            read_npy(tmp_path / name)


@pytest.mark.parametrize("board", [[[0, 0], [0]], [], [[]], [0, 1], [[0, 12]], [[0, -1]], [[0.5]], [["0"]], {"a": 1}])
def test_boards_that_are_none_are_refused(folder, tmp_path, board):
    """Lines of unequal length, unknown cells, anything else: the error says what a board is."""
    (folder / "delivery_mdp" / "board.json").write_text(json.dumps(board))
    refused(folder, tmp_path, DamagedFile, r"board\.json is not a board: expected lists")


def test_whole_numbers_may_be_written_as_decimals(folder, tmp_path):
    """The authors' board.json holds 0.0 and 2.0."""
    (folder / "delivery_mdp" / "board.json").write_text(json.dumps(np.array(SMALL, float).tolist()))
    assert import_delivery_prefs(folder, tmp_path / "set").observations[:, 0].tolist() == STATES


@pytest.mark.parametrize("gone", ["", "human_data", "delivery_mdp/board.json", "human_data/Beta_full_filtered_Y.npy"])
def test_what_is_missing_can_be_found(folder, tmp_path, gone):
    """The error says what the files are, and where the authors publish them."""
    (folder / gone).rename(tmp_path / "elsewhere")
    refused(folder, tmp_path, DamagedFile, r"2206\.02231.*doi:10\.18738/T8/S4WTWR.*Stephanehk/InfluencingHumanPrefs")


@pytest.mark.parametrize(
    ("conditions", "said"),
    [(["Gamma"], "no 'Gamma'. Valid: Alpha, Beta"), ([], "one or more"), (["Beta", "Beta"], "each once")],
)
def test_conditions_that_are_not_there_are_refused(folder, tmp_path, conditions, said):
    """The valid names are told."""
    refused(folder, tmp_path, ConfigError, said, conditions=conditions)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(28, "No space left on device"), PrefrlError, r"Cannot write \S+set: No space left"),
        (PrefrlError("the disk is full"), PrefrlError, "the disk is full"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_an_import_that_fails_while_writing_leaves_nothing(folder, tmp_path, monkeypatch, error, kind, said):
    """The folder appears with its preferences or not at all; one that was there stays, empty."""

    def fail(*_):
        raise error

    monkeypatch.setattr(paired_segments, "append_preferences", fail)
    refused(folder, tmp_path, kind, said)
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind):
        import_delivery_prefs(folder, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_used_folder_stays_as_it_is(folder, tmp_path):
    """An import never writes into a dataset."""
    import_delivery_prefs(folder, tmp_path / "set")
    with pytest.raises(PrefrlError, match="already used"):
        import_delivery_prefs(folder, tmp_path / "set", conditions=["Beta"])
    assert len(read_dataset(tmp_path / "set")) == 6


# the command


def test_the_command_imports_and_says_what_was_cut(folder, tmp_path, capsys):
    """`prefrl import delivery-prefs` makes the dataset of the conditions that the option names."""
    words = ["import", "delivery-prefs", str(folder), f"out={tmp_path / 'set'}", "options.conditions=[Alpha]"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"dataset: {tmp_path / 'set'} (4 episodes, 8 steps)" in said
    assert "segments cut at a terminal state, because they went on behind it: 1" in said
    assert read_dataset(tmp_path / "set").env["conditions"] == ["Alpha"]


@pytest.mark.parametrize("value", ["[Alpha]", "null"])
def test_an_option_that_an_importer_does_not_take_is_an_error(folder, tmp_path, value, capsys):
    """An ineffective key is named, whatever its value."""
    words = ["import", "arrays-npz", str(folder), f"out={tmp_path / 'set'}", f"options.conditions={value}"]
    assert main(words) != 0
    assert "options.conditions has no effect in importer 'arrays-npz'" in capsys.readouterr().err


def test_the_option_must_be_a_list_of_names(folder, tmp_path, capsys):
    """A single name or a number is refused, and the key named."""
    words = ["import", "delivery-prefs", str(folder), f"out={tmp_path / 'set'}"]
    for value in ("Alpha", "3", "[3]"):
        assert main([*words, f"options.conditions={value}"]) != 0
        assert "options.conditions must be list[str]" in capsys.readouterr().err
