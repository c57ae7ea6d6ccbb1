"""Sweeps: the runs that `prefrl train -m` leaves are those of `prefrl train`; what fails or is killed; launchers."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import toy_parts
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from toy_parts import given, use_configs

from prefrl import catalog, sweeps
from prefrl.cli import main
from prefrl.completion import candidates
from prefrl.evaluation.seeds_report import find_runs
from prefrl.files import flatten, load_checkpoint
from prefrl.recipes.online_arm import OnlineArm
from prefrl.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("restored")

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "recipe=online", "env=point_reach", "env.max_episode_steps=20", "recipe.arms=[aligned]", "recipe.video_arms=[]",
    "recipe.steps=160", "recipe.explore_steps=80", "recipe.sessions=2", "recipe.session_interval=40",
    "recipe.comparisons=8", "recipe.log_every=40", "recipe.episodes=2", "recipe.max_steps=20",
    "recipe.checkpoint_every=40", "recipe.fit.epochs=2", "score.hidden=[8]", "workers=1", "tensorboard=false",
    "online_agent.learning_starts=40", "online_agent.hidden=[8]", "online_agent.train_every=4",
    "online_agent.reset_updates=2", "online_agent.batch_size=16", "recipe.segment_length=5",
]  # fmt: skip


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder to run in, with the toy configs."""
    use_configs(monkeypatch, tmp_path / "configs")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def of_toys(tmp_path_factory):
    """A finished sweep of two toys."""
    folder = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        use_configs(patch, folder / "configs")
        patch.chdir(folder)
        assert main(["train", "-m", "seed=0,1", "out=s"]) == 0
    return folder / "s"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A whole sweep of two tiny runs."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    assert main(["train", "-m", *TINY, "seed=0,1", f"out={folder}"]) == 0
    return folder


def made(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


# what a sweep leaves


def test_a_sweep_leaves_runs_and_one_report(swept):
    """Two run directories, named by what differs, with reports of their own, and one on both."""
    assert made(swept) == ["seed=0", "seed=1"]
    assert all((swept / name / "report.html").is_file() for name in ("", "seed=0", "seed=1"))
    seeds = [yaml.safe_load((path / "config.yaml").read_text())["seed"] for path in find_runs([swept])]
    assert seeds == [0, 1]
    page = (swept / "report.html").read_text()
    assert "online in prefrl/PointReach-v0: seeds 0, 1." in page


def test_a_run_of_a_sweep_is_a_run_of_its_own(swept, tmp_path, capsys):
    """Equal to what `prefrl train` makes of the words in its config.yaml, and `prefrl resume` takes it."""
    assert main(["train", *TINY, "seed=1", f"out={tmp_path / 'single'}"]) == 0
    assert_equal_runs(tmp_path / "single", swept / "seed=1")
    assert main(["resume", str(swept / "seed=1")]) == 0
    assert f"report: {swept / 'seed=1' / 'report.html'}" in capsys.readouterr().out


def assert_equal_runs(first, second):
    results = [RunDirectory.open(path).result("arms/aligned") for path in (first, second)]
    assert results[0] == results[1]
    files = [path / "arms/aligned/checkpoint.safetensors" for path in (first, second)]
    (tensors, plain), (others, other_plain) = (flatten(load_checkpoint(file)) for file in files)
    assert tensors.keys() == others.keys()
    assert [k for k in tensors if not np.array_equal(tensors[k], others[k], equal_nan=True)] == []
    assert plain == other_plain


def in_the_second_run(end):
    """Ends a sweep in the middle of the run with seed 1."""
    hold = OnlineArm.hold

    def ending(arm, session):
        if (arm.settings.seed, session) == (1, 1):
            end()
        return hold(arm, session)

    return ending


def stop():
    raise KeyboardInterrupt


def killed(words):
    """In a process of its own; its exit code."""
    code = (
        "import os\nfrom prefrl.cli import main\nfrom prefrl.recipes.online_arm import OnlineArm\n"
        "from test_sweeps import in_the_second_run\n"
        f"OnlineArm.hold = in_the_second_run(lambda: os._exit(9))\nmain({words!r})\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=300, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    return done.returncode


@pytest.mark.parametrize("how", ["stopped", pytest.param("killed", marks=pytest.mark.slow)])
def test_a_sweep_that_ended_early_goes_on_to_equal_runs(how, swept, tmp_path, capsys):
    """In the middle of its second run; the same words then finish it, bitwise as if nothing had happened."""
    folder = tmp_path / "sweep"
    words = ["train", "-m", *TINY, "seed=0,1", f"out={folder}"]
    if how == "killed":
        assert killed(words) == 9
    else:
        shutil.copytree(swept / "seed=0", folder / "seed=0")  # the first one is finished by then
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OnlineArm, "hold", in_the_second_run(stop))
            assert main(words) == 130
    finished = (folder / "seed=0/report.html").stat().st_mtime_ns
    assert not (folder / "report.html").exists()
    assert main(words) == 0
    assert f"{folder / 'seed=0'} is finished" in capsys.readouterr().out
    assert (folder / "seed=0/report.html").stat().st_mtime_ns == finished
    for name in ("seed=0", "seed=1"):
        assert_equal_runs(folder / name, swept / name)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_run_it_in_other_processes(launcher, swept, capfd):
    """By the extra's launcher: here every run is finished, so that each process only finds that out."""
    module, extra = sweeps.EXTRAS[launcher]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the extra {extra!r}")
    options = ["hydra.launcher.n_jobs=2", "hydra.launcher.pre_dispatch=1"] if launcher == "joblib" else []
    assert main(["train", "-m", *TINY, "seed=0,1", f"out={swept}", f"hydra/launcher={launcher}", *options]) == 0
    assert "is finished" not in capfd.readouterr().out
    for name in ("seed=0", "seed=1"):
        log = swept / f"{name}.log"
        assert f"{swept / name} is finished" in log.read_text()
        log.unlink()


def test_what_other_processes_say_goes_into_files(toy, of_toys, capsys, monkeypatch):
    """Beside each run, because several at once would write over each other."""
    shutil.copytree(of_toys, "s")
    job = sweeps._job
    monkeypatch.setattr(sweeps, "_job", lambda config, *, launched_by: job(config, launched_by=-launched_by))
    assert main(["train", "-m", "seed=0,1", "out=s"]) == 0
    assert "seed=0 is finished" not in capsys.readouterr().out
    assert [f"s/{name} is finished" in Path(f"s/{name}.log").read_text() for name in made(toy / "s")] == [True, True]


# which runs, with toys


def test_every_combination_is_a_run_with_its_words(toy):
    """The product of all values, each as `prefrl train` with these words."""
    assert main(["train", "-m", "agent=fast,slow", "seed=range(0,2)", "recipe.steps=7", "out=s"]) == 0
    assert made(toy / "s") == [f"agent={agent},seed={seed}" for agent in ("fast", "slow") for seed in (0, 1)]
    for agent, lr in (("fast", 0.1), ("slow", 0.01)):
        for seed in (0, 1):
            found = given(toy / "s" / f"agent={agent},seed={seed}")
            assert (found["agent"], found["seed"], found["steps"]) == (lr, seed, 7)


def test_slots_of_a_group_are_swept_too(toy):
    """A slot that has another name than its group, beside one of the same group that is fixed."""
    assert main(["train", "-m", "baseline=fast,slow", "agent=slow", "experiment=null", "out=s"]) == 0
    assert [given(toy / "s" / name)["baseline"] for name in made(toy / "s")] == [0.1, 0.01]


def test_what_makes_no_name_of_a_folder_is_a_number(toy):
    """Paths hold slashes."""
    assert main(["train", "-m", "dataset=/a/b,/c/d", "out=s"]) == 0
    assert [given(toy / "s" / name)["dataset"] for name in made(toy / "s")] == ["/a/b", "/c/d"]
    assert made(toy / "s") == ["0", "1"]


def test_without_out_the_folder_says_sweep_recipe_and_data(toy):
    """runs/sweep-<recipe>-<data>-<date>-<time>, relative to where one is."""
    assert main(["train", "--multirun", "seed=0,1"]) == 0
    (folder,) = (toy / "runs").iterdir()
    assert folder.name.startswith("sweep-toy-toy-")
    assert made(folder) == ["seed=0", "seed=1"]


# what goes wrong


def test_a_failed_run_is_named_and_the_others_go_on(toy, capsys):
    """The exit code is 1; the folder and the reason are said, and what continues."""
    assert main(["train", "-m", "recipe=failing,toy", "out=my sweep"]) == 1
    said, failed = capsys.readouterr(), "my sweep/recipe=failing"
    assert f"prefrl: {failed} failed: {failed}/metrics.jsonl: No space left on device." in said.err
    assert "1 of 2 runs failed; `prefrl train -m recipe=failing,toy 'out=my sweep'` goes on" in said.err
    assert given(toy / "my sweep/recipe=toy")["seed"] == 0
    assert "report: my sweep/report.html" in said.out


def test_a_bug_in_one_run_does_not_stop_the_others(toy, capsys, monkeypatch):
    """Whatever is raised, with its traceback."""

    def train(self, run, train=toy_parts.ToyRecipe.train):
        train(self, run) if self.given["seed"] else [][1]

    monkeypatch.setattr(toy_parts.ToyRecipe, "train", train)
    assert main(["train", "-m", "seed=0,1", "out=s"]) == 1
    said = capsys.readouterr().err
    assert "prefrl: s/seed=0 failed: IndexError: list index out of range" in said
    assert "Traceback" in said
    assert given(toy / "s/seed=1")["seed"] == 1


def test_started_again_it_skips_what_is_finished_and_does_the_rest(toy, of_toys, capsys, monkeypatch):
    """With other values too: what is there and finished stays as it is."""
    shutil.copytree(of_toys, "s")
    trained = []
    monkeypatch.setattr(toy_parts.ToyRecipe, "train", lambda self, run: trained.append(run.path.name))
    assert main(["train", "-m", "seed=0,1,2", "workers=2", "out=s"]) == 0
    assert trained == ["seed=2"]
    assert "s/seed=0 is finished" in capsys.readouterr().out


def test_a_folder_of_another_sweep_is_refused(toy, of_toys, capsys):
    """A finished run of other settings is not mistaken for this one, and stays."""
    shutil.copytree(of_toys, "s")
    before = (toy / "s/seed=0/config.yaml").read_bytes()
    assert main(["train", "-m", "seed=0,1", "recipe.steps=4", "out=s"]) == 1
    assert "s/seed=0 holds a run with another recipe.steps. Choose another out=FOLDER." in capsys.readouterr().err
    assert (toy / "s/seed=0/config.yaml").read_bytes() == before


def test_stopping_by_hand_says_how_to_continue(toy, capsys, monkeypatch):
    """Ctrl-C ends the sweep with 130, and the command that continues all of it."""

    def stop(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy_parts.ToyRecipe, "train", stop)
    assert main(["train", "-m", "seed=0,1", "out=s"]) == 130
    assert "prefrl: stopped; continue with `prefrl train -m seed=0,1 out=s`" in capsys.readouterr().err
    assert made(toy / "s") == ["seed=0"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=0"], "-m needs a key with several values, as in seed=0,1,2"),
        ([], "-m needs a key with several values"),
        (["seed=0,x"], "seed must be int, but is 'x'"),
        (["sede=0,1"], "Did you mean 'seed'?"),
        (["agent=fast,fsat"], "there is no such agent. Did you mean 'fast'?"),
        (["seed=interval(0,1)"], "a sweep needs values, as in seed=a,b or seed=range(0,3)"),
        (["seed=0,1", "seed=2"], "seed is given twice"),
        (["seed=0,1", "agent.lr=-1"], "agent: lr must be positive"),
        (["seed=0,1", "hydra/launcher=jobli"], "there is no such launcher. Did you mean 'joblib'?"),
        (["seed=0,1", "hydra.sweep.dir=x"], "hydra.sweep.dir cannot be set: out=FOLDER"),
        (["seed=0,1", "hydra.launcher.jobs=2"], "hydra.launcher.jobs"),
        (["seed=0,1", "--cfg", "job"], "leave out -m"),
    ],
)
def test_what_cannot_work_is_one_message_before_anything_is_made(words, expected, toy, capsys):
    """As for a single run."""
    assert main(["train", "-m", *words, "out=s"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("prefrl: ")
    assert expected in said
    assert "Traceback" not in said
    assert list(Path.cwd().iterdir()) == []


def test_a_run_is_no_folder_for_a_sweep(toy, capsys):
    """Runs do not go into runs."""
    assert main(["train", "out=run"]) == 0
    assert main(["train", "-m", "seed=0,1", "out=run"]) == 1
    assert "run is a run, not a folder for the runs of a sweep" in capsys.readouterr().err


def test_a_missing_launcher_names_its_extra(toy, capsys, monkeypatch):
    """And how to install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for launcher, extra in (("joblib", "sweep"), ("submitit_slurm", "slurm")):
        assert main(["train", "-m", "seed=0,1", f"hydra/launcher={launcher}"]) == 2
        assert f"needs the extra '{extra}': pip install -c constraints.txt -e '.[{extra}]'" in capsys.readouterr().err


# what Hydra is told


def composed(monkeypatch, *words):
    """The sweep's configuration as Hydra sees it, without running it."""
    told = {}
    monkeypatch.setattr(Hydra, "multirun", lambda self, name, task, overrides: told.update(words=overrides) or [])
    assert main(["train", "-m", *words]) == 0
    with hydra.initialize_config_dir(str(catalog.config_root()), version_base="1.3"):
        loader = GlobalHydra.instance().hydra
        return loader.compose_config("train", told["words"], run_mode=RunMode.MULTIRUN, with_log_configuration=False)


def test_slurm_gets_its_options(monkeypatch, toy):
    """The launcher of the extra, with the partition and time that were given."""
    if importlib.util.find_spec(sweeps.EXTRAS["submitit_slurm"][0]) is None:
        pytest.skip("needs the extra 'slurm'")
    options = ["hydra.launcher.partition=cpu", "hydra.launcher.timeout_min=30"]
    found = composed(monkeypatch, "seed=0,1", "out=s", "hydra/launcher=submitit_slurm", *options).hydra
    assert found.launcher._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert (found.launcher.partition, found.launcher.timeout_min, found.sweep.dir) == ("cpu", 30, "s")


def test_side_by_side_each_run_has_one_process(monkeypatch, toy):
    """Joblib's runs do not start workers of their own unless told to; one after another, a run has all cores."""
    if importlib.util.find_spec(sweeps.EXTRAS["joblib"][0]) is None:
        pytest.skip("needs the extra 'sweep'")
    assert composed(monkeypatch, "seed=0,1", "out=s", "hydra/launcher=joblib").workers == 1
    assert composed(monkeypatch, "seed=0,1", "out=s", "hydra/launcher=joblib", "workers=3").workers == 3
    alone = composed(monkeypatch, "seed=0,1", "out=s")
    assert alone.workers is None
    assert alone.threads == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"


# help and completion


def test_help_and_completion_know_sweeps(capsys):
    """-m, the launchers, and further values of a slot."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "hydra/launcher=joblib" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "prefrl train -m seed=0,1,2" in capsys.readouterr().out
    assert "--multirun" in candidates("prefrl train --")
    assert "--multirun" not in candidates("prefrl resume --")
    assert candidates("prefrl train -m hydra/launcher=sub") == [
        "hydra/launcher=submitit_local",
        "hydra/launcher=submitit_slurm",
    ]
    assert candidates("prefrl train -m env=hopper,po") == ["env=hopper,point_reach"]
    assert candidates("prefrl train env=hopper,po") == []
