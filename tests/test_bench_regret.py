"""Laws of ``prefrl bench regret``: its rows, what it does without foreign data, and its bars where they are fast."""

from functools import partial

import numpy as np
import pytest
import torch
from small_mdps import CONDITIONS, DATA, needs_board

import envs
from envs.delivery import BOARD, TRUE_WEIGHTS, Delivery
from envs.double_integrator import DoubleIntegrator
from prefrl.benchmarks import cells, regret_delivery, regret_tabular
from prefrl.benchmarks.findings import at_least, at_most, same, to_rows
from prefrl.benchmarks.regret import GROUPS, find_data
from prefrl.benchmarks.regret_control import Regulator
from prefrl.benchmarks.regret_metaworld import ARMS
from prefrl.config import build, compose
from prefrl.errors import ConfigError, DamagedFile
from prefrl.evaluation.intervals import Estimate, success_interval
from prefrl.files import write_json
from prefrl.solvers import DELIVERY_WEIGHTS, TabularMDP, policy_pool, rewards, value_iteration

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
SMALL = [
    "parts.fits.regret_deterministic.iterations=3", "parts.fits.partial_return.iterations=3", "parts.B5.iterations=3",
    "parts.B6.parts=[[1,1],[3,2]]", "parts.B7.parts=[[3,2,0.1]]", "parts.B8.worlds=2", "parts.B8.pairs=20",
    "parts.B8.iterations={regret_deterministic:3,partial_return:3}", "parts.B9.worlds=2", "parts.B9.pairs=30",
    "parts.B9.iterations=3", "parts.B10.worlds=2", "parts.B10.pairs=20", "parts.B13.pairs=20", "parts.B13.bc_steps=2",
    "parts.B13.steps=3", "parts.B13.batch_size=4", "parts.speed.worlds=3", "parts.H.folds=2",
    "parts.H.scores.ensemble.fit.epochs=1", "parts.H.scores.ensemble.score.members=1",
    "parts.H.scores.transformer.fit.epochs=1", "parts.H.scores.transformer.score.members=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_data_of_the_machine(monkeypatch):
    monkeypatch.delenv("PREFRL_DATA", raising=False)
    monkeypatch.setattr(regret_delivery, "PAPER_ITERATIONS", 3)  # many in a second


def table(overrides=SMALL, **given):
    """Rows by id, of the configuration with fewer of everything."""
    node = compose("bench", ["bench=regret", *(f"bench.{word}" for word in overrides)]).components["bench"]
    rows = build({**node, "_partial_": True}, key="bench")(**{"seeds": [0], **given})
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def walk(rng):
    """A segment as the files hold it, Σφ and the end, cell by cell; moves after the end are (0, 0)."""
    while True:
        row, column = rng.integers(10, size=2)
        if BOARD[row, column] not in (2, 3, 7):
            break
    stored, reward = [(row, column)], 0.0
    for _ in range(3):
        if BOARD[row, column] in (3, 7):
            stored.append((0, 0))
            continue
        move = MOVES[rng.integers(4)]
        stored.append(move)
        to = row + move[0], column + move[1]
        blocked = min(to) < 0 or max(to) > 9 or BOARD[to] == 2
        row, column = (row, column) if blocked else to
        cell = BOARD[row, column]
        ground = -2.0 if cell in (6, 10) else -1.0
        reward += {3: -50.0, 7: 50.0}.get(
            cell, ground + (0.0 if blocked else {4: 1.0, 10: 1.0, 5: -1.0}.get(cell, 0.0))
        )
    return stored, reward, 10 * row + column


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Files as the authors publish them, with 30 made-up pairs a condition; the statistics are counted by hand."""
    folder = tmp_path_factory.mktemp("data") / "regret_human_prefs"
    for part in ("human_data", "delivery_mdp"):
        (folder / part).mkdir(parents=True)
    mdp = TabularMDP.from_arrays(*Delivery().tables())
    weights = torch.tensor(TRUE_WEIGHTS, dtype=torch.float64)
    values = value_iteration(mdp, rewards(mdp, weights), gamma=1.0)[0].numpy()
    rng = np.random.default_rng(0)
    for condition in CONDITIONS:
        sides = [[walk(rng) for _ in range(30)] for _ in "12"]
        segments = np.array([[s[0] for s in side] for side in sides]).swapaxes(0, 1)
        reward, end = (np.array([[s[part] for s in side] for side in sides]) for part in (1, 2))  # (2, n)
        start = (segments[:, :, 0] @ [10, 1]).T
        x = np.stack([part[1] - part[0] for part in (reward, values[start], values[end])], 1)
        stem = folder / "human_data" / condition
        np.save(f"{stem}_full_filtered_segment_pairs.npy", segments)
        np.save(f"{stem}_full_filtered_X.npy", x)
        np.save(f"{stem}_full_filtered_Y.npy", rng.choice([0.0, 0.5, 1.0], 30))
        for name, score in (("pr", x[:, 0]), ("regret", x[:, 0] + x[:, 2] - x[:, 1])):
            np.save(f"{stem}_gt_det_{name}_prefs_Y.npy", 0.5 + 0.5 * np.sign(score.round(2)))
    write_json(folder / "delivery_mdp" / "board.json", BOARD.tolist())
    generator = torch.Generator().manual_seed(0)
    psi, _ = policy_pool(mdp, gamma=0.999, generator=generator, entries=DELIVERY_WEIGHTS, size=6, without=weights)
    np.save(folder / "delivery_mdp" / "succ_feats_no_gt.npy", psi.reshape(-1, 10, 10, 6).numpy())
    return folder


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """A file of people's preferences with 12 pairs, and the script's: opposite labels."""
    folder, rng = tmp_path_factory.mktemp("control"), np.random.default_rng(0)
    arrays = {f"obs_{side}": rng.normal(size=(12, 6, 3)) for side in (1, 2)}
    arrays |= {f"action_{side}": rng.normal(size=(12, 6, 2)) for side in (1, 2)}
    label = np.array([0.0, 1.0, 0.5] * 4)
    np.savez(folder / "Toy_num12_human_train.npz", label=label, **arrays)
    np.savez(folder / "Toy_num12_script_train.npz", label=1 - label, **arrays)
    return folder


# findings


def test_a_bar_is_kept_or_missed_and_infinity_is_a_number():
    """At least, at most, within; without a bar nothing holds; NaN is never good enough."""
    assert [at_least("a", "", value, 1.0).holds for value in (1.0, 0.9, float("nan"))] == [True, False, False]
    assert [at_most("a", "", value, 1.0).holds for value in (1.0, 1.1, float("nan"))] == [True, False, False]
    assert [same("a", "", value, 1.0, within=0.1).holds for value in (1.05, 1.2)] == [True, False]
    assert at_most("a", "", 3.0).holds is None
    (row,) = to_rows([at_least("a", "x", Estimate(float("inf"), 1.0, float("inf")), 2.0, seeds=(4,))], 0.5)
    assert row["value"] == row["high"] == np.finfo(float).max
    assert (row["low"], row["holds"], row["seeds"], row["seconds"]) == (1.0, True, [4], 0.5)


# which rows


def test_rows_without_their_data_are_skipped_and_say_how_to_give_it():
    """No value, no bar that holds; where to get the files and which key takes them."""
    rows = table(rows=["B1", "B3", "B7", "B11", "H", "speed"])
    skipped = {id: row for id, row in rows.items() if str(row["holds"]).startswith("skipped: ")}
    assert set(skipped) == {"B1", "B3", "B7", "B11", "H", "speed.tabular"}
    assert all("data=" in row["holds"] and "PREFRL_DATA" in row["holds"] for row in skipped.values())
    assert all(row["value"] is None and row["seeds"] == [] for row in skipped.values())
    assert rows["speed.value_iteration"]["value"] > 0


def test_rows_are_chosen_by_group_and_listed_in_order():
    """Every group of the YAML is one; a group brings its rows and no others; the board itself needs no files."""
    node = compose("bench", ["bench=regret"]).components["bench"]
    assert set(node["rows"]) == set(GROUPS)
    assert list(table(rows=["B10", "B2"])) == [
        "B2.optimal", "B2.random", "B2.undiscounted", "B10", "B10.luck", "B10.largest",
    ]  # fmt: skip


def test_unknown_rows_and_no_seeds_are_errors():
    """Nothing is measured silently."""
    with pytest.raises(ConfigError, match="'B14'"):
        table(rows=["B14"])
    with pytest.raises(ConfigError, match="seeds"):
        table(rows=["B12"], seeds=0)


def test_data_may_be_a_folder_of_both_one_of_them_or_a_file(people, control, tmp_path, monkeypatch):
    """What is not in data= is looked for in PREFRL_DATA; a path that holds nothing is an error."""
    file = control / "Toy_num12_human_train.npz"
    assert find_data(None) == (None, ())
    assert find_data(str(people.parent)) == find_data(str(people)) == (people, ())
    assert find_data(str(control)) == find_data(str(file)) == (None, (file,))
    monkeypatch.setenv("PREFRL_DATA", str(people.parent))
    assert find_data(None) == (people, ())
    assert find_data(str(file)) == (people, (file,))
    for wrong, named in ((tmp_path, "holds neither"), (tmp_path / "none", "no folder"), (__file__, r"no \.npz")):
        with pytest.raises(ConfigError, match=f"data: .*{named}"):
            find_data(str(wrong))


# people on the board


def test_statistics_counted_by_hand_are_ours(people):
    """Returns, values and noiseless labels of the stand-in, counted cell by cell, are reproduced exactly."""
    rows = table(rows=["B1", "B2"], data=str(people))
    assert (rows["B1"]["value"], rows["B1"]["holds"]) == (0.0, True)
    assert (rows["B1.labels"]["value"], rows["B1.labels"]["holds"]) == (1.0, True)
    assert all(rows[f"B2.{name}"]["holds"] for name in ("optimal", "random", "undiscounted"))


def test_other_statistics_are_found(people, tmp_path, monkeypatch):
    """A stored value that is half a point off makes B1 fail, by that much; arrays of another shape are refused."""
    load = regret_delivery.read_npy
    wrong = {"_X.npy": lambda array: array + 0.5}
    monkeypatch.setattr(
        regret_delivery,
        "read_npy",
        lambda file: next((change for end, change in wrong.items() if str(file).endswith(end)), np.array)(load(file)),
    )
    row = table(rows=["B1"], data=str(people))["B1"]
    assert (row["value"], row["holds"]) == (pytest.approx(0.5), False)
    for change in (lambda array: array[..., 1:], lambda array: array.astype(float)):
        wrong["_pairs.npy"] = change
        with pytest.raises(DamagedFile, match="must hold whole numbers of shape"):
            table(rows=["B1"], data=str(people))


def test_rows_of_the_board_have_their_shapes(people):
    """Ids, sizes of the parts, seeds; equal seeds give equal rows; the time of B1 to B7 is their sum."""
    groups = ["B3", "B4", "B5", "B6", "B7", "B11", "speed"]
    rows, again = (table(rows=groups, data=str(people), seeds=[5, 6]) for _ in "12")
    ids = ["B3.partial_return", "B3.regret", "B4", *(f"B4.{name}" for name in regret_delivery.CONDITIONS)]
    ids += ["B5", "B5.near_optimal", "B5.paper", "B6", "B6.30", "B6.10", "B7.10", "B7.10.regret"]
    ids += ["B7.10.partial_return", "B11", "B11.with_optimal"]
    ids += ["speed.tabular", "speed.value_iteration", "speed.value_iteration_seconds"]
    assert list(rows) == ids
    timed = {"speed.tabular", "speed.value_iteration", "speed.value_iteration_seconds"}
    for id in set(ids) - timed:
        assert rows[id] | {"seconds": 0} == again[id] | {"seconds": 0}
    assert rows["B7.10"]["seeds"] == [5]
    assert rows["B7.10"]["low"] <= rows["B7.10"]["value"] <= rows["B7.10"]["high"]
    measured = {id.partition(".")[0]: rows[id]["seconds"] for id in ids if id[0] == "B" and id[:3] != "B11"}
    assert rows["speed.tabular"]["value"] > sum(measured.values())  # and B1, B2, which are not shown


def test_reshuffled_labels_do_not_narrow_an_interval():
    """Four shuffles that say the same tell as much as one; their rate is the rate of all fits."""
    near = np.array([1.0, 0, 0, 1, 1, 0, 1, 1, 0, 1])
    one, four, independent = (
        find(rng=np.random.default_rng(0))
        for find in (
            partial(success_interval, near),
            partial(regret_delivery.over_shuffles, success_interval, np.tile(near, 4), shuffles=4),
            partial(success_interval, np.tile(near, 4)),
        )
    )
    assert one.value == four.value == independent.value
    assert four.high - four.low == pytest.approx(one.high - one.low, abs=0.1)
    assert four.high - four.low > 1.5 * (independent.high - independent.low)


def test_conditions_are_the_nine():
    """Those that the files are named after."""
    assert set(regret_delivery.CONDITIONS) == set(CONDITIONS)


@needs_board
def test_fast_bars_of_people_hold():
    """The real files: statistics, cross-entropies and their winners, what is not identified, the pool's gap."""
    rows = table([], rows=["B1", "B2", "B3", "B4", "B5", "B11"], data=str(DATA))
    assert [id for id, row in rows.items() if row["holds"] is False] == []
    assert sum(row["holds"] is True for row in rows.values()) == 12


# worlds, losses, regulator


def test_rows_of_random_worlds_have_their_shapes():
    """Shares with intervals inside [0, 1], over all seeds; equal seeds give equal rows."""
    rows, again = (table(rows=["B8", "B9", "B10"], seeds=[0, 1]) for _ in "12")
    shares = ["B8.regret", "B8.partial_return", "B8", "B9.greedy", "B9.with", "B9.without", "B9.greedy_without"]
    assert list(rows) == [*shares, "B10", "B10.luck", "B10.largest"]
    for id in shares:
        assert rows[id] | {"seconds": 0} == again[id] | {"seconds": 0}
        assert -1 <= rows[id]["low"] <= rows[id]["value"] <= rows[id]["high"] <= 1
        assert rows[id]["seeds"] == [0, 1]


def test_pairs_with_and_without_absorbing_transitions_are_equally_many():
    """The second have no step after a terminal state, their first ones are among the former, labels included."""
    drawn = regret_tabular.draw_worlds(envs.random_grid, 2, seed=0)
    for mdp, weights in zip(drawn.alone, drawn.weights, strict=True):
        generator = torch.Generator().manual_seed(0)
        both, whole = regret_tabular._with_and_without(mdp, weights, 300, generator)
        ends = (both.visits < 0).any(-1).any(-1)
        assert len(both.p_first) == len(whole.p_first) == 300 > int((~ends).sum()) > 0
        assert not bool((whole.visits < 0).any())
        for known, found in zip(both.select(~ends), whole, strict=True):
            assert torch.equal(known, found[: len(known)])


def test_identities_hold_and_are_not_trivial():
    """Chance moves single steps by whole rewards, yet not on average; the loss has its values."""
    rows = table(["parts.B10.pairs=200"], rows=["B10", "B12"])
    assert all(rows[id]["holds"] for id in ("B10", "B10.luck", "B12"))
    assert rows["B10.largest"]["value"] > 1


def test_alpha_turns_squared_units_into_the_advantage():
    """A* = −α |u − u*|², u in units of half the action range."""
    regulator = Regulator(DoubleIntegrator(action_limit=4.0))
    generator = torch.Generator().manual_seed(0)
    s, a = (torch.randn(20, size, generator=generator, dtype=torch.float64) for size in (4, 2))
    error = (a - regulator.solution.action(s)) / 4.0
    expected = -regulator.alpha * error.square().sum(-1)
    torch.testing.assert_close(regulator.solution.advantage(s, a), expected)


def test_the_optimal_policy_costs_what_is_optimal():
    """Its cost ratio is 1; the policy that does nothing costs far more."""

    class Linear:
        def __init__(self, gain):
            self.gain = gain

        def act(self, states):
            return -states @ self.gain.mT.to(states)

    regulator = Regulator(DoubleIntegrator())
    assert regulator.cost_ratio(Linear(regulator.solution.gain)) == pytest.approx(1, abs=1e-3)
    assert regulator.cost_ratio(Linear(0 * regulator.solution.gain)) > 10


def test_rows_of_the_regulator_have_their_shapes():
    """The worst seed of what should be small, the best of what should be large; warnings of λ = 1 are meant."""
    rows = table(rows=["B13"], seeds=[3, 4])
    assert list(rows) == ["B13.linear", "B13.mlp", "B13.mlp_worse", "B13.partial_return", "B13.cloning"]
    assert [row["bar"] for row in rows.values()] == [1.01, 1.35, 0, 2.0, None]
    assert all(row["seeds"] == [3, 4] and row["value"] >= 0 for row in rows.values())


# people in continuous control


def test_rows_of_people_stand_next_to_the_script(control):
    """Both scores, on both raters' labels, and how often these agree; only decided labels count."""
    rows = table(rows=["H"], data=str(control))
    names = ["ensemble", "ensemble.script", "transformer", "transformer.script", "agreement"]
    assert list(rows) == [f"H.Toy_num12.{name}" for name in names]
    assert all("8 decided labels" in row["what"] for id, row in rows.items() if "agreement" not in id)
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows.values())
    assert rows["H.Toy_num12.agreement"]["value"] == 0
    assert all(row["bar"] is None for row in rows.values())


def test_segments_that_comparisons_share_are_said(control, tmp_path):
    """Their number, and that of the groups; where all decided comparisons hang together, why there is no accuracy."""
    for name, rows in (("some", [1, 3]), ("all", [*range(12)])):
        arrays = dict(np.load(control / "Toy_num12_human_train.npz"))
        for key in ("obs_1", "action_1"):
            arrays[key][rows] = arrays[key][rows[0]]
        np.savez(tmp_path / f"{name}.npz", **arrays)
    some, everything = (table(rows=["H"], data=str(tmp_path / f"{name}.npz")) for name in ("some", "all"))
    row = some["H.some.ensemble"]
    assert row["value"] is not None
    assert "(segments in several comparisons: 1; folds of whole groups of them: 7)" in row["what"]
    assert everything["H.all.ensemble"]["holds"] == "skipped: groups that share no segment: 1, too few for 2 folds"


def test_labels_that_decide_too_little_are_skipped(control, tmp_path):
    """A script whose reward is nearly always 0 ties nearly everything: no accuracy, and the reason."""
    for name in ("human", "script"):
        arrays = dict(np.load(control / f"Toy_num12_{name}_train.npz"))
        if name == "script":
            arrays["label"] = np.full(12, 0.5)
        np.savez(tmp_path / f"Toy_num12_{name}_train.npz", **arrays)
    rows = table(rows=["H"], data=str(tmp_path))
    assert rows["H.Toy_num12.ensemble"]["value"] is not None
    for name in ("ensemble.script", "transformer.script", "agreement"):
        assert rows[f"H.Toy_num12.{name}"]["value"] is None
        assert rows[f"H.Toy_num12.{name}"]["holds"].startswith("skipped: ")


def test_a_file_without_a_script_has_rows_of_people_only(control, tmp_path):
    """Any file of that layout, under any name."""
    file = tmp_path / "other.npz"
    file.write_bytes((control / "Toy_num12_human_train.npz").read_bytes())
    assert list(table(rows=["H"], data=str(file))) == ["H.other.ensemble", "H.other.transformer"]


# Meta-World

SUCCESS = {"bc": 0.2, "sft": 0.4, "cpl": 0.8, "aligned": 0.7, "random": 0.3, "cpl_random": 0.2}


@pytest.fixture
def trained(monkeypatch):
    """The cells that were trained; instead of training, they leave results with the success rates above."""
    done = []

    def train(cell, run):
        done.append(cell)
        for arm, rate in SUCCESS.items():
            write_json(run / "stages" / f"arms.{arm}.json", {"success": (np.arange(10) < round(10 * rate)).tolist()})
        write_json(run / "stages" / "collect.json", {"success": [True] + 9 * [False]})

    monkeypatch.setattr(cells, "_train", train)
    return done


def test_metaworld_says_what_the_cells_say(tmp_path, trained):
    """Success of behavior and arms, the ordering and its bar, oracle and seeds named; finished cells are kept."""
    given = {"rows": ["metaworld"], "seeds": [3, 4], "folder": str(tmp_path), "workers": 1}
    rows = table(**given)
    assert len(trained) == 6
    assert all(f"recipe.arms=[{','.join(ARMS)}]" in cell.overrides for cell in trained)
    ordering = rows["metaworld.ordering"]
    assert (ordering["value"], ordering["bar"], ordering["holds"], ordering["seeds"]) == (3, 3, True, [13, 14])
    assert "scripted policy" in ordering["what"]
    assert rows["metaworld.above_random"]["value"] == 3
    for arm, rate in {**SUCCESS, "behavior": 0.1}.items():
        row = rows[f"metaworld.faucet.{arm}"]
        assert row["value"] == pytest.approx(rate)
        assert row["low"] <= rate <= row["high"]
    assert rows["metaworld.handle.cpl-sft"]["value"] == pytest.approx(40)
    again = table(**given)
    assert {id: row | {"seconds": 0} for id, row in again.items()} == {
        id: row | {"seconds": 0} for id, row in rows.items()
    }
    assert len(trained) == 6


@pytest.mark.parametrize("arm", ["sft", "cpl"])
def test_another_ordering_does_not_hold(tmp_path, trained, monkeypatch, arm):
    """SFT no better than the data, or CPL worse than SFT."""
    monkeypatch.setitem(SUCCESS, arm, 0.1)
    row = table(rows=["metaworld"], seeds=[3], folder=str(tmp_path), workers=1)["metaworld.ordering"]
    assert (row["value"], row["holds"]) == (0, False)


def test_the_training_runs_compose():
    """Their overrides fit the recipe, its experiments and the teacher."""
    node = compose("bench", ["bench=regret"]).components["bench"]["parts"]["metaworld"]
    for own in node["tasks"].values():
        chosen = compose("train", [*node["overrides"], *own]).choices
        assert (chosen["recipe"], chosen["teacher"]) == ("cpl", "regret_scripted")
