"""The layout of the repository as laws: layers, sizes, names, and what must not be in the code."""

import ast
import fnmatch
import importlib
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("prefrl", "agents", "envs")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

# a module imports from its own layer and those above it in this list
LAYERS = [
    {"errors", "core", "protocols", "files", "runs", "progress", "spaces"},
    {"linear", "returns", "losses", "transport", "preference_models"},
    {"scores", "teachers", "data", "queries", "representation", "solvers", "value_oracles", "transfer"},
    {"train", "evaluation"},
    {"recipes", "labelling", "benchmarks"},
    {"signatures", "catalog", "schemas", "config", "launch", "running", "sweeps", "commands", "doctor",
     "completion", "cli", "__main__"},
]  # fmt: skip
KNOW_HYDRA = {"prefrl.config", "prefrl.cli", "prefrl.sweeps"}
AGENTS_MAY_USE = {"core", "linear", "returns", "losses", "protocols", "files", "errors", "spaces"}
TOP_LEVEL = {
    "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
    "constraints.txt",
    "prefrl", "agents", "envs", "configs", "tests", "videos",
    ".ci", ".git", ".gitignore", ".pre-commit-config.yaml",
}  # fmt: skip


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def imported(nodes, module):
    """Absolute names of the modules that import statements among ``nodes`` need."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
            above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = ".".join(filter(None, [above if node.level else "", node.module or ""]))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def all_imports(module):
    return set(imported(ast.walk(TREES[module]), module))


def layer(module):
    name = module.split(".")[1]
    return next((index for index, names in enumerate(LAYERS) if name in names), None)


def top(name):
    return name.partition(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) == "envs"])
def test_envs_import_nothing_of_ours(module):
    """An environment knows neither preferences nor learners."""
    assert not {"prefrl", "agents"} & {top(name) for name in all_imports(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) == "prefrl"])
def test_prefrl_knows_no_concrete_environment_or_agent(module):
    """prefrl reaches envs and agents by configs only."""
    assert not {"envs", "agents"} & {top(name) for name in all_imports(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) == "agents"])
def test_agents_use_only_the_lowest_layers_of_prefrl(module):
    """A learner needs the data types, not the trainers; and no environment."""
    names = all_imports(module)
    assert "envs" not in {top(name) for name in names}
    assert {name.split(".")[1] for name in names if name.startswith("prefrl.")} <= AGENTS_MAY_USE


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("prefrl.")])
def test_layers(module):
    """A module of prefrl stands in a layer and imports from no later one."""
    assert layer(module) is not None, f"give {module} a layer in tests/test_layout.py"
    ours = [name for name in all_imports(module) if name.startswith("prefrl.")]
    assert [name for name in ours if layer(name) is None or layer(name) > layer(module)] == []


def test_imports_form_no_circle():
    """Imports at module level are a directed graph without circles."""
    graph = {
        name: {other for other in imported(tree.body, name) if other in MODULES and other != name}
        for name, tree in TREES.items()
    }
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in KNOW_HYDRA])
def test_only_the_command_line_knows_hydra(module):
    """cfg stops at the command line: below it there are keyword arguments."""
    assert not {"hydra", "omegaconf"} & {top(name) for name in all_imports(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("prefrl.losses")] or [None])
def test_losses_import_only_torch(module):
    """Losses are pure functions of tensors."""
    if module is None:
        pytest.skip("there is no prefrl.losses yet")
    allowed = {"torch", "prefrl", *sys.stdlib_module_names}
    names = all_imports(module)
    assert {top(name) for name in names} <= allowed
    assert {name for name in names if top(name) == "prefrl"} <= {m for m in MODULES if m.startswith("prefrl.losses")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    """At most 400 lines a file; 40 a function's body, its docstring, blank and comment lines not counted."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400
    for node in ast.walk(TREES[module_name(file)]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            own = lines[body[0].lineno - 1 : body[-1].end_lineno] if body else []
            count = sum(bool(line.strip()) and not line.strip().startswith("#") for line in own)
            assert count <= 40, f"{node.name} has {count} lines"


@pytest.mark.parametrize("module", MODULES)
def test_names_say_something(module):
    """No module is a drawer for anything, none hides one of the standard library's."""
    last = module.rpartition(".")[2]
    assert last not in {"utils", "util", "common", "helpers", "helper", "misc"}
    assert last == "__main__" or last not in sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist(module):
    """Every name in ``__all__`` can be imported; the first docstring line says what the module is."""
    tree = TREES[module]
    assert ast.get_docstring(tree), f"{module} needs a docstring"
    if module == "prefrl.__main__" or ".sides." in module:
        return  # scripts; those of the sides run in environments of their own
    loaded = importlib.import_module(module)
    has_public = any(
        isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") for node in tree.body
    )
    assert hasattr(loaded, "__all__") or not has_public, f"{module} needs an __all__"
    assert [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_device_is_named(module):
    """Whether something runs on a GPU is decided by the caller's tensors."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value.partition(":")[0] != "cuda"


def test_the_top_level_is_fixed():
    """The top level holds what it should and nothing else; what git ignores does not count."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    found = {entry.name for entry in ROOT.iterdir() if not any(fnmatch.fnmatch(entry.name, glob) for glob in ignored)}
    assert found - TOP_LEVEL == set()
