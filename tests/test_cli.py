"""The command line: what it refuses, what it says, and that it is quick. Toy parts stand in for real ones."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_parts import given, use_configs, write_configs

from prefrl.cli import main
from prefrl.completion import SCRIPTS, candidates
from prefrl.schemas import COMMANDS

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder to run in, with the toy configs; global settings of torch and the environment are restored."""
    use_configs(monkeypatch, tmp_path / "configs")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield tmp_path / "here"
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def fails(capsys, *words, code=2):
    """The one message of a command that must fail, without a traceback and with nothing left behind."""
    assert main(list(words)) == code
    output = capsys.readouterr()
    assert output.err.startswith("prefrl: ")
    assert "Traceback" not in output.err + output.out
    assert list(Path.cwd().iterdir()) == []
    return output.err


def run_python(code, **kwargs):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=True,
        **kwargs,
    )


# speed: what is imported, because seconds depend on the machine


def test_help_imports_nothing_heavy():
    """`prefrl --help` needs neither torch, numpy nor Hydra."""
    done = run_python("import sys; from prefrl.cli import main; main(['--help']); print(*sys.modules)")
    names = done.stdout.split()
    assert not {"torch", "numpy", "hydra", "omegaconf", "rich", "gymnasium"} & set(names)
    assert all(command in done.stdout for command in COMMANDS)


def test_showing_the_configuration_imports_no_torch():
    """`prefrl train --cfg job` prints YAML with every run-level key, without torch and numpy."""
    done = run_python(
        "import sys; from prefrl.cli import main; main(['train', '--cfg', 'job']);print(*sys.modules, file=sys.stderr)"
    )
    assert not {"torch", "numpy", "gymnasium"} & set(done.stderr.split())
    assert "\nseed: 0\n" in done.stdout
    assert "_target_: prefrl.recipes.offline.Offline" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    """`prefrl COMMAND --help` shows its usage and ends with 0."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"prefrl {command}" in capsys.readouterr().out


# words that are refused


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "sede=1"], "Unknown key 'sede'. Did you mean 'seed'?"),
        (["train", "agent.lrr=1"], "Did you mean 'agent.lr'? Valid here: agent.hidden, agent.lr."),
        (["train", "steps=1"], "Did you mean 'recipe.steps'?"),
        (["train", "agnet=fast"], "Unknown key 'agnet'. Did you mean 'agent'?"),
        (["train", "agent=fsat"], "agent=fsat: there is no such agent. Did you mean 'fast'?"),
        (["train", "baseline=fats"], "Did you mean 'fast'?"),
        (["train", "experiment=quik"], "Did you mean 'quick'?"),
        (["train", "seed=abc"], "seed must be int, but is 'abc' (str)"),
        (["train", "seed=1.5"], "seed must be int"),
        (["train", "seed=-1"], "seed must be 0 or larger"),
        (["train", "threads=0"], "threads must be at least 1"),
        (["train", "deterministic=maybe"], "deterministic must be bool"),
        (["train", "agent.lr=abc"], "agent.lr must be float, but is 'abc' (str)"),
        (["train", "agent.lr=true"], "agent.lr must be float"),
        (["train", "agent.hidden=[8,x]"], "agent.hidden must be list[int] | None"),
        (["train", "recipe.steps=2.5"], "recipe.steps must be int"),
        (["train", "recipe.mode=even"], "recipe.mode must be one of 'plain', 'odd', but is 'even'"),
        (["train", "agent.lr=-1"], "agent: lr must be positive, but is -1"),
        (["train", "env.size=0"], "env: size must be positive, but is 0"),
        (["train", "seed=1", "seed=2"], "seed is given twice"),
        (["train", "agent=fast", "agent=slow"], "agent is given twice"),
        (["train", "seed=1,2"], "write a list as seed=[1,2]"[:21]),
        (["train", "+new=1"], "expected key=value"),
        (["train", "~agent"], "expected key=value"),
        (["train", "fast"], "expected key=value"),
        (["train", "agent={lr: 3}"], "there is no such agent"),
        (["train", "score.lr=2"], "score.lr has no effect in recipe 'toy'"),
        (["train", "tensorboard=false"], "tensorboard has no effect in recipe 'toy'"),
        (["train", "dataset=some", "data.lr=2"], "data.lr has no effect when dataset is given"),
        (["train", "agent=misspelt"], "agent.learningrate is not an argument of toy_parts.Agent"),
        (["train", "agent=gone"], "agent._target_: cannot find 'toy_parts.Nothing'"),
        (["train", "agent=evil"], "'os.system' is of the standard library"),
        (["train", "agent=alias"], "'toy_parts.shutil.rmtree' is of the standard library"),
        (["train", "agent=torch"], "'torch.load' may unpickle"),
        (["train", "agent=numpy"], "'numpy.load' may unpickle"),
        (["train", "agent=null"], "The recipe needs 'agent'"),
        (["train", "device=cpu"], "Unknown key 'device'"),
        (["train", "--verbose"], "--verbose"),
        (["train", "--cfg", "hydra"], "--cfg"),
        (["collect"], "out is required"),
        (["evaluate"], "RUN is missing"),
        (["evaluate", "runs/none", "episodes=0"], "episodes must be at least 1"),
        (["render", "runs/none", "out=x.avi"], "out=x.avi: a video's name ends with .mp4 or .gif"),
        (["doctor", "uot=x"], "Unknown key 'uot'. Did you mean 'out'?"),
        (["bench"], "NAME is missing"),
        (["bench", "tyo"], "Did you mean 'toy'?"),
        (["bench", "toy", "rows=[frist]"], "bench toy has no row 'frist'. Did you mean 'first'?"),
        (["bench", "toy", "make_sides=true"], "make_sides has no effect in bench 'toy'"),
        (["list", "agnets"], "Did you mean 'agents'?"),
        (["completion", "powershell"], "Valid: bash, fish, zsh"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_clear_message(words, expected, toy, capsys):
    """A wrong word names the key and the nearest valid one, ends with 2, and leaves nothing behind."""
    assert expected in fails(capsys, *words)


def test_debug_shows_the_traceback(toy, capsys):
    """`--debug` adds the traceback and keeps message and exit code."""
    assert main(["train", "agent.lr=abc", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


# what a run is given


def test_run_level_keys_and_components_reach_the_recipe(toy):
    """Overrides of keys, slots and experiments arrive; ``baseline`` is a slot of the group ``agent``."""
    words = [
        "train",
        "out=runs/a",
        "seed=7",
        "agent.lr=0.5",
        "baseline=fast",
        "workers=3",
        "experiment=quick",
    ]
    assert main(words) == 0
    expected = {"agent": 0.5, "baseline": 0.1, "steps": 1, "seed": 7, "workers": 3, "dataset": None}
    assert given(toy / "runs/a") == expected


def test_an_experiment_sets_run_level_keys_and_a_word_overrides_it(toy):
    """The defaults yield to an experiment, and the experiment to the command line."""
    assert main(["train", "out=a", "experiment=quick"]) == 0
    assert main(["train", "out=b", "experiment=quick", "seed=6", "recipe.steps=2"]) == 0
    found = [(given(toy / run)["seed"], given(toy / run)["steps"]) for run in ("a", "b")]
    assert found == [(5, 1), (6, 2)]


def test_a_path_may_hold_characters_of_the_grammar(toy):
    """``out`` is taken as it is: spaces, brackets, commas and equals signs are part of a path."""
    out = "runs/it's [a], b=(c)"
    assert main(["train", f"out={out}"]) == 0
    assert given(toy / out)["seed"] == 0


def test_without_out_the_folder_says_recipe_and_data(toy):
    """The default run directory is runs/<recipe>-<data>-<time>."""
    assert main(["train"]) == 0
    (folder,) = (toy / "runs").iterdir()
    assert folder.name.startswith("toy-toy-2")


def test_resume_builds_the_same_run(toy, tmp_path):
    """What `resume` hands to the recipe equals what `train` did, though the defaults have changed since."""
    assert main(["train", "out=run", "seed=3", "agent.lr=0.25", "workers=1"]) == 0
    before = given(toy / "run")
    (toy / "run" / "given.json").unlink()
    (tmp_path / "configs" / "agent" / "fast.yaml").write_text("_target_: toy_parts.Agent\nlr: 9\n")
    assert main(["resume", "run", "workers=2"]) == 0
    assert given(toy / "run") == {**before, "workers": 2}


def test_a_used_run_directory_is_refused_and_left_as_it_is(toy, capsys):
    """`train` into a used folder is an error that names `resume`, and no file in it changes."""
    assert main(["train", "out=run", "seed=3"]) == 0
    before = {file: file.read_bytes() for file in (toy / "run").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(["train", "out=run"]) == 1
    assert "already used" in (message := capsys.readouterr().err)
    assert "prefrl resume run" in message
    assert {file: file.read_bytes() for file in (toy / "run").rglob("*") if file.is_file()} == before


def test_an_unwritable_run_directory_is_one_message(toy, capsys, monkeypatch):
    """A folder that cannot be made is an error that says why and what to do."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "Permission denied" in (message := fails(capsys, "train", "out=run", code=1))
    assert "out=PATH" in message


def test_a_file_in_the_way_is_one_message(toy, capsys):
    """``out`` below a file cannot be made; the file stays."""
    (toy / "file").write_text("mine")
    assert main(["train", "out=file/run"]) == 1
    assert capsys.readouterr().err.startswith("prefrl: Cannot make the run directory file/run")
    assert (toy / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["a: [", "just words", "", "seed: 1\nunknown: 2\n"])
def test_a_damaged_saved_configuration_is_one_message(text, toy, capsys):
    """`resume` of a run whose config.yaml is damaged or foreign says so."""
    assert main(["train", "out=run"]) == 0
    capsys.readouterr()
    (toy / "run" / "config.yaml").write_text(text)
    assert main(["resume", "run"]) in (1, 2)
    message = capsys.readouterr().err
    assert message.startswith("prefrl: ")
    assert "Traceback" not in message


def test_what_is_no_run_directory_is_refused(toy, capsys):
    """Commands on a run name what is missing there."""
    for command in ("resume", "evaluate", "render", "report"):
        assert "not a run directory" in fails(capsys, command, "nowhere", code=1)


def test_a_foreign_run_cannot_call_the_standard_library(toy, capsys):
    """A run directory from elsewhere that names ``os.system`` is refused before anything is called."""
    assert main(["train", "out=run"]) == 0
    file = toy / "run" / "config.yaml"
    file.write_text(file.read_text().replace("toy_parts.Agent\n  lr", "os.system\n  command: touch owned\n  lr"))
    assert main(["resume", "run"]) == 2
    assert "standard library" in capsys.readouterr().err
    assert not (toy / "owned").exists()


FOREIGN = [
    {"_target_": "torch.load", "f": "evil"},
    {"_target_": "numpy.load", "file": "evil", "allow_pickle": True},
    {"_target_": "prefrl.files.torch.load", "f": "evil"},
    {"_target_": "prefrl.files.write_json", "path": "owned", "value": 1},
    {"_target_": "toy_parts.Agent", "_args_": [{"_target_": "os.system", "_args_": ["touch owned"]}]},
    {"_target_": "toy_parts.Agent", "lr": {"_target_": "torch.load", "f": "evil"}},
    {"_target_": "toy_parts.Agent", "lr": "${oc.create:{_target_: os.system, command: touch owned}}"},
    {"_target_": {"a": "torch.load"}},
]


@pytest.mark.parametrize("node", FOREIGN, ids=str)
@pytest.mark.parametrize("command", ["resume", "evaluate", "render", "report"])
def test_a_foreign_run_calls_only_what_our_configs_name(node, command, toy, tmp_path, capsys, monkeypatch):
    """Readers that unpickle, aliases, nested nodes and interpolations are refused before anything is called."""
    assert main(["train", "out=run"]) == 0
    capsys.readouterr()
    for name in ("evil", "torch", "numpy"):
        (tmp_path / "configs" / "agent" / f"{name}.yaml").unlink()  # so that no config names what they name
    file = toy / "run" / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "agent": node}))
    for module in (torch, np):
        monkeypatch.setattr(module, "load", lambda *a, **k: (toy / "owned").write_text(""))
    assert main([command, "run"]) in (1, 2)
    message = capsys.readouterr().err
    assert "PREFRL_TRUST" in message or "which a saved configuration never does" in message
    assert not (toy / "owned").exists()


@pytest.mark.parametrize("name", ["torch.load", "numpy.load"])
def test_trust_does_not_reach_what_unpickles(name, toy, capsys, monkeypatch):
    """``PREFRL_TRUST`` opens a package, but its unpicklers stay closed."""
    assert main(["train", "out=run"]) == 0
    capsys.readouterr()
    file = toy / "run" / "config.yaml"
    file.write_text(file.read_text().replace("toy_parts.Agent", name, 1))
    monkeypatch.setenv("PREFRL_TRUST", "torch,numpy")
    assert main(["resume", "run"]) == 2
    assert "may unpickle" in capsys.readouterr().err


def test_a_package_of_ones_own_is_trusted_by_name(toy, capsys, tmp_path, monkeypatch):
    """What no config names any more runs again with ``PREFRL_TRUST=package``, as the error says."""
    assert main(["train", "out=run"]) == 0
    for file in (tmp_path / "configs").rglob("*.yaml"):
        file.write_text(file.read_text().replace("toy_parts", "other_parts"))
    assert main(["resume", "run"]) == 2
    assert "set PREFRL_TRUST=toy_parts" in capsys.readouterr().err
    monkeypatch.setenv("PREFRL_TRUST", "mine,toy_parts")
    assert main(["resume", "run"]) == 0


def test_the_dataset_is_stored_as_an_absolute_path(toy, monkeypatch):
    """``dataset=`` is relative to where `train` was called, and `resume` finds it from anywhere."""
    assert main(["train", "out=run", "dataset=data/a b"]) == 0
    assert given(toy / "run")["dataset"] == str(toy / "data/a b")
    saved = yaml.safe_load((toy / "run" / "config.yaml").read_text())
    assert (saved["dataset"], saved["out"]) == (str(toy / "data/a b"), "run")
    (toy / "elsewhere").mkdir()
    monkeypatch.chdir(toy / "elsewhere")
    assert main(["resume", "../run"]) == 0
    assert given(toy / "run")["dataset"] == str(toy / "data/a b")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("disk", ["a run/metrics.jsonl: No space left on device", "Free some space", "prefrl resume"]),
        ("copy", ["to: [Errno 28] No space left on device", "Free some space"]),
        ("worker", ["A worker process was killed", "`prefrl resume 'a run'`", "lower workers="]),
    ],
)
def test_what_the_machine_refuses_is_one_message(kind, expected, toy, capsys):
    """A full disk or a killed worker in the middle of a run: no traceback, the file, the reason, what to do."""
    assert main(["train", "recipe=failing", f"recipe.kind={kind}", "out=a run"]) == 1
    message = capsys.readouterr().err
    assert [text for text in expected if text not in message] == []
    assert "Traceback" not in message


def test_a_package_that_is_missing_is_one_message():
    """Without Hydra, `train` says what is missing and how to install it."""
    code = "import sys; sys.modules['hydra'] = None; from prefrl.cli import main; print(main(['train']))"
    done = run_python(code)
    assert done.stdout.split() == ["1"]
    assert "hydra" in done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_stopping_by_hand_says_how_to_continue(toy, tmp_path):
    """Ctrl-C ends with 130 and names the command that continues, without a traceback."""
    folder = str(tmp_path / "configs")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import pathlib, prefrl.catalog, prefrl.config\n"
        f"for m in (prefrl.catalog, prefrl.config): m.config_root = lambda: pathlib.Path({folder!r})\n"
        "from prefrl.cli import main; sys.exit(main(['train', 'recipe=slow', 'out=my run']))"
    )
    write_configs(tmp_path / "configs")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert any(line.strip() == "ready" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; continue with `prefrl resume 'my run'`" in error
    assert "Traceback" not in error


# the other commands


def test_commands_on_a_run(toy, capsys):
    """evaluate, render and report reach the recipe with their keys, and say where the result is."""
    assert main(["train", "out=run"]) == 0
    assert main(["evaluate", "run", "arm=baseline", "episodes=4", "seed=5"]) == 0
    stored = json.loads((toy / "run/evaluations/baseline-seed5-episodes4.json").read_text())
    assert stored["lengths"] == [5] * 4
    assert "baseline: 4 episodes" in capsys.readouterr().out
    assert main(["render", "run", "arms=[aligned,baseline]", "out=videos/v.mp4"]) == 0
    assert (toy / "videos/v.mp4").read_text() == "['aligned', 'baseline']"
    assert main(["render", "run", "arms=[aligned]", "out=videos/v.GIF"]) == 0
    assert (toy / "videos/v.GIF").read_text() == "gif of ['aligned']"
    assert sorted(file.name for file in (toy / "videos").iterdir()) == ["v.GIF", "v.mp4"]
    assert main(["render", "run", "arms=[dark]"]) == 1
    assert "prefrl doctor" in capsys.readouterr().err
    assert main(["report", "run"]) == 0
    assert "run/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["evaluate", "run", "arm=alinged"], ["render", "run", "arms=[baseline,alinged]"]])
def test_an_unknown_arm_is_answered_with_the_nearest(words, toy, capsys):
    """A misspelt arm names the nearest one that the run has."""
    assert main(["train", "out=run"]) == 0
    capsys.readouterr()
    assert main(words) == 2
    assert "no arm 'alinged'. Did you mean 'aligned'? Valid: aligned, baseline, dark." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [(["collect"], "out: ???"), (["import"], "out: ???"), (["bench"], "bench: ???"), (["bench", "toy"], "scale: 2")],
)
def test_showing_the_configuration_needs_no_required_key(words, line, toy, capsys):
    """``--cfg job`` prints ``???`` for what is required, instead of asking for it."""
    assert main([*words, "--cfg", "job"]) == 0
    assert line in [text.strip() for text in capsys.readouterr().out.splitlines()]


def test_bench_writes_rows_and_says_what_does_not_hold(toy, capsys):
    """A bar that does not hold is said and stored, and is no failure of the command."""
    assert main(["bench", "toy", "bench.scale=3", "out=b.json"]) == 0
    assert "does not hold: second" in capsys.readouterr().out
    rows = json.loads((toy / "b.json").read_text())
    assert [(row["id"], row["value"], row["holds"]) for row in rows] == [
        ("first", 3, True),
        ("second", 0.5, False),
    ]
    assert main(["bench", "toy", "rows=[first]", "seeds=2"]) == 0
    assert [row["seeds"] for row in json.loads((toy / "bench/toy.json").read_text())] == [2]


def test_list_describes_every_option(toy, capsys):
    """`list GROUP` has one line an option: the first comment of its file, or the docstring of its target."""
    assert main(["list", "recipes"]) == 0
    out = capsys.readouterr().out
    assert "toy      A toy." in out
    assert main(["list"]) == 0
    assert "quick  Less of everything." in capsys.readouterr().out


# completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prefrl tr", ["train", "transfer"]),
        ("prefrl train se", ["seed="]),
        ("prefrl train agent=f", ["agent=fast"]),
        ("prefrl train baseline=s", ["baseline=slow"]),
        ("prefrl train agent.", ["agent.hidden=", "agent.lr="]),
        ("prefrl train agent=slow agent.l", ["agent.lr="]),
        ("prefrl train recipe=", ["recipe=failing", "recipe=slow", "recipe=toy"]),
        ("prefrl train --c", ["--cfg"]),
        ("prefrl bench ", ["toy"]),
        ("prefrl list re", ["recipe"]),
        ("prefrl completion z", ["zsh"]),
        ("prefrl train nothing=", []),
    ],
)
def test_candidates_of_the_last_word(line, expected, toy):
    """Completion offers commands, keys, options and the keys of the chosen option."""
    assert candidates(line) == expected


def test_bash_completes_a_line():
    """The bash script, fed by the real command, completes an option after ``env=``."""
    script = "\n".join(
        [
            f'prefrl() {{ {sys.executable} -m prefrl "$@"; }}',
            SCRIPTS["bash"],
            'COMP_LINE="prefrl train env=point"; COMP_POINT=${#COMP_LINE}',
            'compopt() { :; }; _prefrl; printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["point_reach"]
