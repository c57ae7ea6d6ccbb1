"""The report on several runs: which are one group, that its numbers are those of the runs, what is missing."""

import json
import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrl.cli import main
from prefrl.errors import ConfigError, DamagedFile, RunDirectoryError
from prefrl.evaluation.seeds_report import (
    each_once,
    find_runs,
    groups,
    mean_curve,
    place_of_report,
    report_seeds,
    rows,
)
from prefrl.evaluation.seeds_runs import changed_keys, read_run
from prefrl.files import write_json
from prefrl.runs import RunDirectory

CONFIG = {
    "seed": 0, "out": None, "workers": None, "env": {"id": "Hopper-v5"},
    "recipe": {"_target_": "prefrl.recipes.online.Online", "arms": ["aligned", "true_reward"], "steps": 100},
    "agent": {"_target_": "agents.Sac", "lr": 0.1, "hidden": [8]},
}  # fmt: skip


def make_run(path, seed=0, *, words="", stage="arms", returns=None, curve=None, **changes):
    """A run as a recipe leaves it; ``returns``: arm → (E,) of its evaluation; ``curve``: step → true return."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG)) | {"seed": seed, "out": str(path)}
    for key, value in changes.items():
        node = config
        *above, last = key.split("__")
        for name in above:
            node = node[name]
        node[last] = value
    run = RunDirectory.create(path, config=f"# prefrl train {words} seed={seed}\n{yaml.safe_dump(config)}")
    for arm, values in ({"aligned": [1.0, 2.0], "true_reward": [3.0, 4.0]} if returns is None else returns).items():
        run.finish(f"{stage}/{arm}", {"returns": list(values), "success": [value > 1.5 for value in values]})
        lines = [json.dumps({"step": step, "true_return": value}) for step, value in (curve or {}).items()]
        (run.stage(f"arms/{arm}") / "metrics.jsonl").write_text("\n".join(lines))
    return path


def grouped(*paths):
    return groups([read_run(path) for path in paths])


# groups


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    """Neither do folder, workers and events: they change no number."""
    runs = [make_run(tmp_path / str(seed), seed, workers=seed + 1, tensorboard=seed > 1) for seed in (2, 0, 1)]
    (group,) = grouped(*runs)
    assert (group.name, [run.seed for run in group.runs]) == ("", [0, 1, 2])


def test_groups_are_named_by_the_keys_in_which_they_differ(tmp_path):
    """A group is every setting, and its name what tells it from the others."""
    runs = [make_run(tmp_path / f"{lr}{seed}", seed, agent__lr=lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    assert [group.name for group in grouped(*runs)] == ["agent.lr=0.1", "agent.lr=0.2"]


def test_groups_with_many_differences_are_named_by_the_words_of_their_start(tmp_path):
    """Another agent is many keys, but one word."""
    other = {"_target_": "agents.Ppo", "clip": 0.1, "epochs": 2, "rollout": 4}
    paths = [
        make_run(tmp_path / "a", words="agent=sac out=x"),
        make_run(tmp_path / "b", words="agent=ppo", agent=other),
    ]
    assert [group.name for group in grouped(*paths)] == ["agent=sac", "agent=ppo"]
    paths.append(make_run(tmp_path / "c", words="agent=ppo", agent=other | {"clip": 0.2}))
    names = [group.name for group in grouped(*paths)]  # words do not tell these apart
    assert len(set(names)) == 3
    assert all("more keys" in name for name in names)


def test_what_cannot_be_compared_stands_apart(tmp_path):
    """Returns of other recipes and environments are another task, with a table of its own."""
    paths = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", env__id="Walker2d-v5"),
        make_run(tmp_path / "c", recipe___target_="prefrl.recipes.offline.Offline"),
    ]
    tasks = [(group.task, group.name) for group in grouped(*paths)]
    assert tasks == [("online in Hopper-v5", ""), ("online in Walker2d-v5", ""), ("offline in Hopper-v5", "")]
    page = report_seeds(paths).read_text()
    assert all(f"<h3>{task}</h3>" in page for task, _ in tasks)


def test_equal_runs_count_once(tmp_path):
    """Equal configuration and seed are one result; the run that has come farther stands for it."""
    begun, whole = make_run(tmp_path / "a", returns={}), make_run(tmp_path / "b", out="elsewhere")
    kept, notes = each_once([read_run(begun), read_run(whole)])
    assert [run.path for run in kept] == [whole]
    assert notes == [f"{begun} is left out: {whole} has the same configuration and seed."]


# numbers

RETURNS = st.lists(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5
)  # (S seeds, E episodes)


@settings(max_examples=15)
@given(values=RETURNS)
def test_means_are_those_of_the_stored_results(values, tmp_path_factory):
    """Mean over seeds of the means over episodes, and the interval holds it and lies within the seeds."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [make_run(folder / str(s), s, returns={"aligned": some}) for s, some in enumerate(values)]
    (row,) = rows(grouped(*paths))
    means = np.mean(values, axis=1)
    assert row.mean_return.value == pytest.approx(means.mean(), abs=1e-9)
    assert row.mean_success.value == pytest.approx((np.array(values) > 1.5).mean())
    for estimate, seeds in ((row.mean_return, means), (row.mean_success, row.successes)):
        assert seeds.min() - 1e-9 <= estimate.low <= estimate.value + 1e-9
        assert estimate.value - 1e-9 <= estimate.high <= seeds.max() + 1e-9


def test_equal_seeds_have_an_interval_of_no_width(tmp_path):
    """Where every seed has the same result, nothing is uncertain."""
    paths = [make_run(tmp_path / str(seed), seed, curve={10: 1.0, 20: 2.5}) for seed in range(4)]
    for row in rows(grouped(*paths)):
        assert row.mean_return.low == row.mean_return.high == row.mean_return.value
    _, over = mean_curve(grouped(*paths)[0], "aligned", "true_return")
    np.testing.assert_array_equal([over.low, over.high], [over.value, over.value])


def test_curves_are_raw_means_at_the_steps_of_all_seeds(tmp_path):
    """No smoothing, and no step that a seed lacks; the band holds the mean."""
    curves = [{10: 1.0, 20: 5.0, 30: 0.0}, {10: 2.0, 20: -5.0}, {10: 6.0, 20: 9.0, 40: 1.0}]
    (group,) = grouped(*(make_run(tmp_path / str(s), s, curve=curve) for s, curve in enumerate(curves)))
    steps, over = mean_curve(group, "aligned", "true_return")
    assert steps == [10, 20]
    np.testing.assert_allclose(over.value, [3.0, 3.0])
    assert (over.low <= over.value).all()
    assert (over.value <= over.high).all()
    assert mean_curve(group, "aligned", "return") is None


def test_results_of_rollouts_count_too(tmp_path):
    """Recipes that keep an arm's episodes under rollouts."""
    path = make_run(tmp_path / "a", stage="rollouts", recipe={"_target_": "prefrl.recipes.regret.Regret"})
    assert [(row.arm, row.mean_return.value) for row in rows(grouped(path))] == [("aligned", 1.5), ("true_reward", 3.5)]


# what is missing


def test_an_unfinished_run_is_named_and_not_counted(tmp_path, capsys):
    """Neither in the table nor in the curves."""
    whole = make_run(tmp_path / "a", 0, curve={10: 1.0})
    begun = make_run(tmp_path / "b", 1, returns={"true_reward": [9.0]}, curve={10: 9.0})
    (group,) = grouped(whole, begun)
    assert {row.arm: row.seeds for row in rows([group])} == {"aligned": (0,), "true_reward": (0, 1)}
    assert mean_curve(group, "aligned", "true_return")[1].value.tolist() == [1.0]
    page = report_seeds([whole, begun]).read_text()
    said = f"{begun}: the arm 'aligned' is not finished; continue with `prefrl resume {begun}`."
    assert f"missing: {said}" in capsys.readouterr().out
    assert 'class="missing"' in page
    assert "the arm &#x27;aligned&#x27; is not finished" in page


def test_runs_without_results_make_a_page_that_says_so(tmp_path):
    """A sweep whose runs have all just begun."""
    page = report_seeds([make_run(tmp_path / "a", returns={})]).read_text()
    assert "No run has results yet." in page


def test_a_folder_stands_for_the_runs_below_it(tmp_path):
    """At any depth, each once; what is inside a run is its own."""
    paths = [make_run(tmp_path / name) for name in ("one", "deep/two")]
    make_run(tmp_path / "one/inside")
    (tmp_path / "empty").mkdir()
    assert sorted(find_runs([tmp_path, paths[0]])) == sorted(paths)
    with pytest.raises(RunDirectoryError, match=r"empty is not a run directory of prefrl, and none is below it"):
        find_runs([tmp_path / "empty"])


def test_a_damaged_configuration_is_named(tmp_path):
    """The file, and what to do."""
    path = make_run(tmp_path / "a")
    for text in ("a: [", "- list", "seed: x"):
        (path / "config.yaml").write_text(text)
        with pytest.raises(DamagedFile, match=r"config.yaml is not .*Leave this run out"):
            read_run(path)


def test_changed_keys_are_those_that_change_results():
    """Two configurations by the keys in which they differ."""
    assert changed_keys("seed: 1\nout: a\nagent: {lr: 1}", "seed: 2\nout: b\nagent: {lr: 1, tau: 0}") == [
        "seed",
        "agent.tau",
    ]


# the page and the command


def test_the_page_goes_where_it_is_told_and_never_over_a_runs_own(tmp_path, monkeypatch):
    """Into the folder that the runs share, or to out=…; a run's report.html stays."""
    monkeypatch.chdir(tmp_path)
    a, b = make_run(tmp_path / "runs/a"), make_run(tmp_path / "runs/b", 1)
    assert str(place_of_report(["runs/a", b], None)) == str(place_of_report(["runs"], None)) == "runs/report.html"
    assert str(place_of_report([a, b], "x/y.html")) == "x/y.html"
    assert str(place_of_report([a, b], "x")) == "x/report.html"
    for out in ("runs/a", "runs/a/report.html"):
        with pytest.raises(ConfigError, match="would be in a run"):
            place_of_report([a, b], out)


def test_the_page_is_complete_in_itself(tmp_path):
    """Nothing is fetched, and it holds curves, seeds and configurations."""
    paths = [make_run(tmp_path / str(s), s, curve={10: float(s), 20: 3.0}, agent__lr=lr)
             for s, lr in ((0, 0.1), (1, 0.1), (2, 0.2))]  # fmt: skip
    page = report_seeds(paths).read_text()
    assert "Content-Security-Policy" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png") == 2  # one for each arm, with a line for each group
    assert "aligned (agent.lr=0.1)" in page
    assert all(f"<summary>{path}</summary>" in page for path in paths)


def test_reports_on_equal_runs_are_equal(tmp_path):
    """Nothing on the page is random."""
    make_run(tmp_path / "a", 0, curve={10: 1.0})
    make_run(tmp_path / "b", 1, curve={10: 2.0}, returns={"aligned": [7.0, 1.0]})
    assert report_seeds([tmp_path]).read_bytes() == report_seeds([tmp_path], str(tmp_path / "again")).read_bytes()


def test_the_command_takes_runs_and_folders(tmp_path, capsys, monkeypatch):
    """`prefrl report RUN RUN` prints one table and writes one page; the runs' own reports are not touched."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "1")
    a, b = make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 1, returns={"aligned": [5.0]})
    write_json(a / "report.html", "its own")
    assert main(["report", str(a), str(b), f"out={tmp_path / 'both.html'}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"aligned +│ 2 +│ 3.25 +│ 1.5 – 5", said)
    assert f"report: {tmp_path / 'both.html'}" in said
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file()
    assert (a / "report.html").read_text() == '"its own"\n'
    assert main(["report", str(a), "out=x"]) == 2
    assert "out has no effect with one run" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), str(a)]) == 1
    assert "none is not a run directory" in capsys.readouterr().err
