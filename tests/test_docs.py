"""What the README and its neighbors say is true: links lead somewhere, commands compose, files exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from prefrl.cli import parse
from prefrl.config import compose
from prefrl.losses import LOSSES
from prefrl.schemas import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "videos/README.md"]
COMMAND = re.compile(r"(?:^|`)\s*(?:\$ )?(prefrl [a-z]+(?: [^`#\n|]*)?)", re.MULTILINE)


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Every relative link and picture is a file of the repository."""
    links = re.findall(r"\]\(([^)#]+)", text(page)) + re.findall(r"src=\"([^\"]+)\"", text(page))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (ROOT / page).parent.joinpath(link.split()[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_compose(page):
    """Every `prefrl …` that a page shows names a command, and its keys exist with these types."""
    for shown in COMMAND.findall(text(page)):
        words = shlex.split(shown)[1:]
        assert words[0] in COMMANDS, shown
        if any("…" in word or "your" in word for word in words) or not COMMANDS[words[0]].configured:
            continue
        given, overrides, _ = parse(words[0], words[1:]) if words[1:] else ([], [], False)
        if "-m" in words:  # a sweep: its first run
            overrides = [word.partition(",")[0] for word in overrides if not word.startswith("hydra/")]
        named = [f"bench={given[0]}"] if words[0] == "bench" and given else []
        if overrides or named:
            compose(words[0], [*named, *overrides])


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    """Every `make TARGET` that a page shows is one."""
    targets = set(re.findall(r"^([a-z]+):.*##", text("Makefile"), re.MULTILINE))
    shown = " ".join(re.findall(r"(?:^|`)make ([a-z ]+)", text(page), re.MULTILINE))
    assert set(shown.split()) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    """A path into our folders that a page names in backquotes is there (patterns are not paths)."""
    named = re.findall(r"`((?:prefrl|agents|envs|configs|tests)/[\w./]+)`", text(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_table_of_losses_is_complete():
    """README's table has every family of losses with the names of all its rows."""
    shown = dict(re.findall(r"^\| `prefrl/losses/(\w+)\.py` \| [^|]* \| ([^|]*) \|$", text("README.md"), re.MULTILINE))
    assert f"papers of all {len(LOSSES)}:" in text("README.md")
    families: dict[str, list[str]] = {}
    for row in LOSSES.values():
        families.setdefault(row.family, []).append(row.name)
    assert {family: sorted(re.findall(r"`(\w+)`", names)) for family, names in shown.items()} == {
        family: sorted(names) for family, names in families.items()
    }


def test_the_example_of_losses_runs():
    """README's loss of a token policy is a number with a gradient in the hidden states."""
    (block,) = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    found = {}
    exec(compile(block, "README.md", "exec"), found)
    hidden, tokens = torch.randn(4, 3, 8, requires_grad=True), torch.tensor([[1, 2, -100]] * 4)
    found["loss"](hidden, torch.nn.Linear(8, 5), tokens, torch.zeros(4, 3)).backward()
    assert hidden.grad.abs().sum() > 0
