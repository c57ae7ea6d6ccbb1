"""Every YAML composes, names what exists, fits its constructor's signature, builds, and explains its keys."""

import inspect
import re
import shlex
from dataclasses import fields

import hydra
import pytest

from prefrl import catalog
from prefrl import config as config_module
from prefrl.catalog import config_root, describe, groups, option_values, options, read_yaml, slots
from prefrl.cli import EPILOG, parse
from prefrl.commands import default_folder
from prefrl.config import build, check, compose, locate
from prefrl.errors import ConfigError
from prefrl.launch import check_teacher, make_recipe
from prefrl.schemas import SCHEMAS
from prefrl.signatures import annotations_of

ROOT = config_root()
# an experiment overrides keys that are explained where they are defined
EXPLAINED = sorted(file for file in ROOT.rglob("*.yaml") if file.parent.name != "experiment")
OPTIONS = [(group, option) for group in groups() for option in options(group)]
SLOTS = {
    group: (command, slot) for command in SCHEMAS for slot, (group, _) in reversed(slots(command).items())
}  # a command that a group's options can be tried in
EXPERIMENTS = options("experiment")
OF_THE_USER = {("teacher", "regret_sac"): ["teacher.oracle.critic.path=x"]}  # keys that only a user can give
COMPONENTS = [(group, option) for group, option in OPTIONS if group not in ("experiment", "bench", "recipe")]


def nodes_with_target(node, key=""):
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from nodes_with_target(child, f"{key}.{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from nodes_with_target(child, f"{key}[{index}]")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_its_signature(group, option):
    """Each option composes in a command that has its group, and its arguments fit what it names."""
    command, slot = SLOTS[group]
    required = [*(["out=x"] if "out" in read_yaml(command) else []), *OF_THE_USER.get((group, option), [])]
    config = compose(command, [f"{slot}={option}", *required])
    for name, node in config.components.items():
        check(node, key=name)


@pytest.mark.parametrize(("group", "option"), COMPONENTS)
def test_every_component_builds(group, option):
    """A component can be made (or bound, where it is a partial) from its YAML alone."""
    if (group, option) in OF_THE_USER:
        pytest.skip("is made of a file of the user's")
    command, slot = SLOTS[group]
    required = ["out=x"] if "out" in read_yaml(command) else []
    node = compose(command, [f"{slot}={option}", *required]).components[slot]
    assert callable(build(node, key=slot)) or not node.get("_partial_")


@pytest.mark.parametrize("experiment", [None, *EXPERIMENTS])
def test_every_experiment_makes_a_recipe(experiment, restored):
    """The default and each experiment build everything, up to the first step."""
    recipe = make_recipe(compose("train", [f"experiment={experiment}"] if experiment else []))
    assert callable(recipe.train)


@pytest.mark.parametrize("recipe", options("recipe"))
def test_every_recipe_builds_with_its_own_defaults(recipe, restored):
    """`recipe=NAME` alone is enough, up to the first step."""
    assert callable(make_recipe(compose("train", [f"recipe={recipe}"])).train)


@pytest.mark.parametrize(
    "words",
    [[], *([f"recipe={name}"] for name in options("recipe")), *([f"experiment={name}"] for name in EXPERIMENTS),
     ["recipe=cpl", "experiment=faucet_close"], ["recipe=regret", "experiment=point"],
     ["experiment=delivery", "recipe=cpl"], ["recipe=cpl", "teacher=oracle", "direct=cpl_kl"]],
    ids=" ".join,
)  # fmt: skip
def test_choices_are_those_of_hydra(words):
    """The recipe's defaults, the experiment's over them and the user's over both, are found without composing."""
    with hydra.initialize_config_dir(str(ROOT), version_base="1.3"):
        named = {"direct": "agent@direct"}
        texts = ["=".join([named.get(key, key), value]) for key, value in (word.split("=") for word in words)]
        found = hydra.compose("train", texts, return_hydra_config=True).hydra.runtime.choices
    expected = {name.partition("@")[2] or name: option for name, option in found.items() if "hydra/" not in name}
    assert compose("train", words).choices == {slot: option for slot, option in expected.items() if option}


def test_a_recipe_chooses_its_own_parts():
    """Whose word counts: the user's, then the experiment's, then the recipe's; and the run is named after it."""
    assert compose("train", ["recipe=cpl"]).choices["teacher"] == "regret_scripted"
    assert compose("train", ["recipe=cpl", "teacher=oracle"]).choices["teacher"] == "oracle"
    assert slots("train", {"recipe": "cpl", "experiment": "point"})["data"] == ("data", "point_conflict")
    assert slots("train", {"recipe": "cpl"})["data"] == ("data", "faucet_conflict")
    assert default_folder(compose("train", ["recipe=regret"])).name.startswith("regret-delivery_random-")
    with pytest.raises(ConfigError, match=r"Unknown key 'teacher.betta'. Did you mean 'teacher.beta'.*teacher.model"):
        compose("train", ["recipe=cpl", "teacher.betta=1"])
    with pytest.raises(ConfigError, match=r"recipe=clp: there is no such recipe"):
        compose("train", ["recipe=clp"])


def test_a_recipe_whose_defaults_cannot_be_read_is_named(tmp_path, monkeypatch):
    """A YAML error in a recipe is one message with its file."""
    for name in ("train.yaml", "recipe/offline.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "recipe/broken.yaml").write_text("defaults: [")
    for module in (catalog, config_module):
        monkeypatch.setattr(module, "config_root", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"broken.yaml"):
        compose("train", ["recipe=broken"])


EXAMPLES = [shlex.split(line)[2:] for line in re.findall(r"^  (prefrl train.*?)(?:   .*)?$", EPILOG, re.MULTILINE)]


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_the_examples_of_the_help_work(words, restored):
    """What `prefrl --help` shows builds everything, up to the first step."""
    _, overrides, show_config = parse("train", words)
    assert callable(make_recipe(compose("train", overrides, incomplete=show_config)).train)


def test_the_help_has_examples():
    """The default, its configuration, and one with keys."""
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("words", [["env=point_reach"], ["env=hopper"], ["data=point_conflict"]])
def test_data_that_do_not_fit_the_environment_are_refused(words, restored):
    """Behaviors of another environment are found before anything is made, and the message says which key."""
    with pytest.raises(ConfigError, match=r"data: Behavior '.*' failed in .*data=…"):
        make_recipe(compose("train", words))


@pytest.mark.parametrize(
    ("experiment", "recipe", "own"), [("delivery", "cpl", "regret"), ("point", "regret", "offline")]
)
def test_an_experiment_of_another_recipe_is_refused(experiment, recipe, own, restored):
    """An experiment whose keys the chosen recipe does not take is named with its own recipe."""
    with pytest.raises(ConfigError, match=rf"experiment={experiment} is of recipe={own}; leave out recipe=…"):
        make_recipe(compose("train", [f"recipe={recipe}", f"experiment={experiment}"]))


class Unable:
    """A teacher that finds out that it cannot answer."""

    def ineffective(self, key):
        return "it is ignored" if key == "unused" else None

    def check(self):
        raise ConfigError("the script cannot act")


@pytest.mark.parametrize(
    ("keys", "said"), [([], "script cannot act"), (["teacher.unused"], "teacher.unused has no effect: it is ignored")]
)
def test_a_teacher_checks_itself(keys, said):
    """Before anything is collected, a teacher says what it cannot do, and which of its options do nothing."""
    with pytest.raises(ConfigError, match=said):
        check_teacher(Unable(), keys)
    check_teacher(None, keys)


@pytest.mark.parametrize("env", options("env"))
def test_random_data_fit_every_environment(env, restored):
    """`data=random` can be collected anywhere."""
    recipe = ["recipe=regret"] if env == "delivery" else []  # the one for grid worlds
    assert callable(make_recipe(compose("train", [f"env={env}", "data=random", *recipe])).train)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_are_short_lists_of_overrides(experiment):
    """An experiment overrides, it does not copy: fewer than 20 lines with a value."""
    lines = (ROOT / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert "# @package _global_" in lines
    assert sum(bool(re.match(r"\s*(- )?[\w/@ ]+: *[^#\s]", line)) for line in lines) < 20


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_annotations_of_targets_resolve(group, option):
    """Types of arguments are checked only where annotations can be resolved: those of ours always can."""
    for key, node in nodes_with_target(option_values(group, option)):
        target = locate(node["_target_"], key=key)
        annotated = [p for p in inspect.signature(target).parameters.values() if p.annotation is not p.empty]
        assert set(annotations_of(target)) >= {p.name for p in annotated}


@pytest.mark.parametrize("file", EXPLAINED, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_key_has_a_comment(file):
    """A key is explained on its line or the one above (names are not); the top says what the file is."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#"), "the first line says what this is"
    opens = [*lines[1:], ""]
    for number, line in enumerate(lines):
        key = re.match(r"(\s*)(?:- )?([\w@/ ]+):(.*)", line)
        if line.startswith("#") or not key or key[2].startswith("_") or key[2] in ("defaults", "id", "name"):
            continue
        is_block = not key[3].strip() and len(opens[number]) - len(opens[number].lstrip()) >= len(key[1])
        above = number > 0 and lines[number - 1].strip().startswith("#")
        assert "#" in key[3] or above or is_block, f"line {number + 1}: {line}"


@pytest.mark.parametrize("command", SCHEMAS)
def test_run_level_keys_are_those_of_the_schema(command):
    """The YAML of a command has exactly the keys of its dataclass; what else there is, is a component."""
    found = {key for key, value in read_yaml(command).items() if key != "defaults" and type(value) is not dict}
    assert found == {field.name for field in fields(SCHEMAS[command])}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_described(group, option):
    """`prefrl list` has a line for each."""
    assert len(describe(group, option)) > 10


@pytest.mark.parametrize(("group", "option"), COMPONENTS)
def test_a_misspelt_key_in_a_yaml_is_an_error(group, option):
    """Below every ``_target_``, partial or not, an argument that does not exist is found before building."""
    node = option_values(group, option)
    parameters = inspect.signature(locate(node["_target_"], key=group)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        pytest.skip("takes any keyword and checks it when it is called")
    with pytest.raises(ConfigError, match="no_such_argument is not an argument"):
        check({**node, "no_such_argument": 1}, key=group)
