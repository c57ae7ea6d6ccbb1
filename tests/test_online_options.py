"""Options of recipe online: each does what its paper says, costs no answer, and leaves exact resume as it was."""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_online import SURF, answers_of, assert_same_run, begun, recipe, rows, state, stopping, words

from prefrl.cli import main
from prefrl.config import compose
from prefrl.data.storage import read_dataset
from prefrl.files import flatten, load_checkpoint
from prefrl.launch import make_recipe
from prefrl.progress import progress_bars
from prefrl.recipes import online_arm, online_report
from prefrl.recipes.online import Online
from prefrl.recipes.online_arm import OnlineArm, run_online_arm
from prefrl.recipes.online_policies import load_arm_policy, load_milestones
from prefrl.recipes.online_reward import optimistic, unlabelled_pairs
from prefrl.runs import RunDirectory
from prefrl.scores import ReturnEnsemble
from prefrl.teachers import SimulatedTeacher
from prefrl.train.exploration import disagreement_bonus
from prefrl.train.fit_score import score_optimizer

pytestmark = pytest.mark.usefixtures("restored")

CROPS = "{_target_: prefrl.train.semi_supervised.semi_supervised, crop: [4, 5]}"
ALL = {
    "recipe__bonus": 0.05, "recipe__bonus_decay": 0.01, "recipe__explore_normalize": True,
    "recipe__explore_form": "distance", "recipe__milestones": 3, "recipe__refit": True, **SURF,
}  # fmt: skip
OPTIONS = {
    "sac": ALL | {"recipe__meta_every": 40, "recipe__meta__batch_size": 16, "online_agent__train_every": 10},
    "ppo": ALL | {"online_agent__clip_schedule": "linear", "online_agent__lr_schedule": "linear",
                  "online_agent__explore_epochs": 3},
}  # fmt: skip


def trained(tmp_path, settings, arm="aligned"):
    run = begun(tmp_path / "run")
    run_online_arm(arm, path=run.path, settings=settings)
    return run


def milestones(run, arm="aligned"):
    """File → tensors by name."""
    return {file.name: flatten(load_checkpoint(file))[0] for file in (run.path / "arms" / arm / "milestones").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An arm with all options in one go, by the command: a function of which learner, to its settings and its run."""

    @functools.cache
    def made(kind):
        changed = OPTIONS[kind] | ({"recipe__video_arms": "[aligned]"} if kind == "ppo" else {})
        path = tmp_path_factory.mktemp("whole") / "run"
        assert main(["train", *words(kind, **changed), f"out={path}"]) == 0
        return recipe(kind, **OPTIONS[kind]).settings, RunDirectory.open(path)

    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """PPO without an option, taught by an attribute: its settings, its run, what it told of itself, and the bar."""
    settings = recipe("ppo", recipe__steps=200, teacher="attribute").settings
    run, notes = begun(tmp_path_factory.mktemp("plain") / "run"), []
    console = Console(record=True, force_terminal=False, width=120)
    with progress_bars(console) as bars:

        def show(*told):
            notes.append(told)
            bars(*told)

        run_online_arm("aligned", path=run.path, settings=settings, show=show)
    return settings, run, notes, console.export_text()


# all together

PLACES = [
    ("sac", "collect", 1, True), ("sac", "learn_through_critic", 3, True), ("ppo", "collect", 2, True),
    ("ppo", "explain", 2, False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "number", "after"), PLACES, ids=str)
def test_with_every_option_an_interrupted_run_ends_as_an_uninterrupted_one(whole, kind, name, number, after, tmp_path):
    """Bonus, running deviation, pseudo-labels, crops, critic steps, schedules, milestones: bitwise the same."""
    settings, expected = whole(kind)
    run = begun(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineArm, name, stopping(getattr(OnlineArm, name), number, after=after))
        with pytest.raises(KeyboardInterrupt):
            run_online_arm("aligned", path=run.path, settings=settings)
    run_online_arm("aligned", path=run.path, settings=settings)
    assert_same_run(run, expected)
    kept, others = milestones(run), milestones(expected)
    assert sorted(kept) == sorted(others) == ["160.safetensors", "240.safetensors", "80.safetensors"]
    assert all(torch.equal(tensor, others[file][name]) for file in kept for name, tensor in kept[file].items())


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_spend_no_answer(whole, kind):
    """As many questions and answers as without: pairs that nobody answered have no label of the teacher."""
    run = whole(kind)[1]
    assert [(s["asked"], s["answered"]) for s in run.result("arms/aligned")["sessions"]] == [(7, 7), (14, 14)]
    assert len(answers_of(run)) == 14


def test_ppo_runs_from_the_command_line_to_its_report(whole):
    """online_agent=ppo_online with its schedules over all steps of the recipe; a finished run resumes to itself."""
    run = whole("ppo")[1]
    before, filmed = state(run), run.result("videos")
    assert (filmed["milestones"] == "videos/milestones.mp4") == (filmed["reason"] is None)
    assert rows(run)[120]["clip_range"] == pytest.approx(0.2 * (1 - 120 / 240))
    assert rows(run)[240]["clip_range"] == 0
    assert before["moments"]["count"] == 80  # two rollouts of exploration
    assert main(["resume", str(run.path), "workers=1"]) == 0
    weights = [checkpoint["learner"]["policy"]["action_net.weight"] for checkpoint in (before, state(run))]
    assert torch.equal(*weights)


def test_the_keys_of_prefppo_fit_together():
    """Those that configs/agent/ppo_online.yaml names, in a recipe of as many steps as they are for."""
    text = (Path(__file__).parents[1] / "configs/agent/ppo_online.yaml").read_text(encoding="utf-8")
    named = re.findall(r"\b([a-z_]+)=([\w.,\[\]-]+)", text.partition("# PrefPPO as there")[2].partition("_target_")[0])
    of_recipe = Online.__dataclass_fields__
    keys = [f"{'recipe' if name in of_recipe else 'online_agent'}.{name}={value.rstrip('.,')}" for name, value in named]
    assert len(keys) >= 15
    made = make_recipe(compose("train", ["recipe=online", "env=point_reach", "online_agent=ppo_online", *keys]))
    assert made.online_agent.keywords["schedule_steps"] == made.steps == 4_000_000


def test_a_rollout_is_rewarded_by_the_newest_reward(plain):
    """PPO learns from no older reward: what lies beside the steps after a session is the reward fitted there."""
    settings, run, *_ = plain
    at_work = OnlineArm("aligned", run.path / "arms/aligned", settings)
    experience = at_work.learner.world.experience
    steps = experience.at(np.arange(160, 200))  # after the last session
    at_work.learner.close()
    with torch.no_grad():
        expected = at_work.score.reward(torch.from_numpy(steps.observations), torch.from_numpy(steps.actions)).mean(0)
    np.testing.assert_allclose(steps.rewards, expected, rtol=1e-5, atol=1e-6)
    assert not experience.rewards[:80].any()  # nothing is rewarded again: exploration had none


# the bonus


@pytest.fixture(scope="module")
def curious(tmp_path_factory):
    """SAC with a bonus: its settings, its run, and the steps that it has asked a bonus for, in their order."""
    told = []

    def watched(*args, step, **options):
        told.append(step)
        return optimistic(*args, step=step, **options)

    settings = recipe(recipe__bonus=0.5, recipe__bonus_decay=0.01, online_agent__train_every=4).settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_arm, "optimistic", watched)
        return settings, trained(tmp_path_factory.mktemp("curious"), settings), told


def test_the_bonus_is_stored_as_of_when_a_reward_was_written(curious):
    """Mean + β (1 − ρ)^t std of the members: t is the last session for what it relabelled, then the step itself."""
    settings, run, _ = curious
    at_work = OnlineArm("aligned", run.path / "arms/aligned", settings)
    steps = at_work.learner.world.experience.at(np.arange(240))
    at_work.learner.close()
    with torch.no_grad():
        members = at_work.score.reward(torch.from_numpy(steps.observations), torch.from_numpy(steps.actions)).numpy()
    t = np.maximum(np.arange(1, 241), 160)
    expected = members.mean(0) + 0.5 * 0.99**t * members.std(0)
    np.testing.assert_allclose(steps.rewards, expected, rtol=1e-4, atol=1e-6)
    assert (steps.rewards > members.mean(0)).all()


def test_what_is_replayed_has_the_bonus_of_the_present_step(curious):
    """Each sampled batch is rewarded anew, so that between sessions no bonus is older than its step."""
    new = [sorted([*range(start + 1, start + 81), *range(start + 4, start + 81, 4)]) for start in (80, 160)]
    assert curious[2] == [80, *new[0], 160, *new[1]]  # relabelling too: updates after the reset read what is stored


def test_a_negated_reward_still_explores():
    """The sign turns the mean around, and not the bonus."""
    score = ReturnEnsemble(observation_size=2, action_size=1, members=3, hidden=[8], seed=0)
    o, a = torch.randn(5, 2), torch.randn(5, 1)
    members = score.reward(o, a).detach()
    found = optimistic(score, o, a, sign=-1, step=10, beta=0.5, decay=0.1)
    torch.testing.assert_close(found, -members.mean(0) + disagreement_bonus(members, step=10, beta=0.5, decay=0.1))


# the exploration's running deviation


def test_the_exploration_is_over_its_running_deviation(tmp_path):
    """Novelty over the deviation of all novelty so far, counted up to here; the state is plain numbers."""
    settings = recipe(recipe__explore_normalize=True, recipe__explore_form="distance").settings
    at_work = OnlineArm("aligned", begun(tmp_path / "run").stage("arms/aligned"), settings)
    at_work.learner.collect(30)
    states = at_work.learner.states()
    plain = OnlineArm("aligned", tmp_path, recipe(recipe__explore_form="distance").settings)
    plain.learner = at_work.learner
    first, second = (plain.novelty(part, part) for part in (states[:20], states[5:]))
    torch.testing.assert_close(at_work.novelty(states[:20], states), first / first.std(correction=0))
    found = at_work.novelty(states[5:], states)
    torch.testing.assert_close(found, second / torch.cat([first, second]).std(correction=0))
    at_work.learner.close()


# pairs without an answer


class Counting(SimulatedTeacher):
    """Counts what it is asked."""

    asked: ClassVar[list[int]] = []

    def answer(self, first, second, rng):
        self.asked.append(len(first))
        return super().answer(first, second, rng)


def test_pairs_without_an_answer_are_the_agents_and_nobody_is_asked(tmp_path, monkeypatch):
    """Ten for each answer, of recent episodes, without true rewards, to the fit of every session."""
    seen = []

    def watched(*args, **options):
        pairs = unlabelled_pairs(*args, **options)
        seen.append(pairs)
        return pairs

    monkeypatch.setattr(online_arm, "unlabelled_pairs", watched)
    monkeypatch.setattr(Counting, "asked", [])
    settings = replace(recipe("ppo", recipe__recent_episodes=3, **SURF).settings, teacher=Counting())
    trained(tmp_path, settings)
    assert Counting.asked == [7, 7]
    assert [len(first) for first, _ in seen] == [70, 140]
    assert all(side.true_reward is None and (side.lengths == 5).all() for pair in seen for side in pair)
    assert set(seen[0][0].refs.episode) <= {1, 2, 3}  # of four


def test_pseudo_labels_change_what_is_learned(tmp_path):
    """The same answers, another reward; so do crops alone, which need no pairs."""
    changed = {"plain": {}, "surf": SURF, "crops": {"recipe__fit__augment": CROPS}}
    short = {"recipe__steps": 120, "recipe__sessions": 1, "recipe__session_interval": None, "recipe__comparisons": 7}
    runs = {name: trained(tmp_path / name, recipe("ppo", **short, **more).settings) for name, more in changed.items()}
    weights = {name: state(run)["score"]["weights.0"] for name, run in runs.items()}
    assert not torch.equal(weights["plain"], weights["surf"])
    assert not torch.equal(weights["plain"], weights["crops"])
    first = [answers_of(run).p_first for run in runs.values()]
    assert all(np.array_equal(answers, first[0]) for answers in first)


# the reward's step through the critic


def test_critic_steps_come_at_their_stops_once_a_reward_is_there(whole):
    """Every 40 steps from the first session on, and each is in the metrics."""
    found = rows(whole("sac")[1])
    assert [step for step, row in found.items() if "meta_loss" in row] == [80, 120, 160, 200, 240]


# milestones


def test_the_policy_is_kept_at_evenly_spaced_steps(whole):
    """Three of 240 steps; the last acts as the policy in the end, and none holds more than the policy's weights."""
    settings, run = whole("sac")
    kept = load_milestones(run.path / "arms/aligned", settings)
    assert list(kept) == [80, 160, 240]
    last = load_arm_policy(run, "aligned", settings)
    o = torch.rand(9, 2)
    assert torch.equal(kept[240].act(o), last.act(o))
    assert not torch.equal(kept[80].act(o), last.act(o))
    file = run.path / "arms/aligned/milestones/80.safetensors"
    weights = sum(p.numel() for p in kept[80].parameters())
    assert list(load_checkpoint(file)) == ["policy"]
    assert file.stat().st_size < 4 * weights + 8000


def test_milestones_are_the_next_stops():
    """Where an even step is none at which the agent pauses, the next one is taken."""
    settings = recipe("ppo", recipe__milestones=5).settings
    assert settings.milestones_at() == [80, 120, 160, 200, 240]  # of 48, 96, 144, 192, 240
    assert replace(settings, milestones=0).milestones_at() == []
    assert replace(settings, milestones=99).milestones_at() == settings.stops()


def test_milestones_are_filmed_and_shown(whole, monkeypatch):
    """One tile a milestone of the first video arm; where nothing can be rendered, the reason is printed."""
    run = whole("sac")[1]
    made = recipe("sac", **(OPTIONS["sac"] | {"recipe__video_arms": "[aligned]"}))
    filmed = {}

    def film(path, behaviors, make_env, **episode):
        filmed[path.name] = list(behaviors)
        path.write_bytes(b"a film")
        return path

    monkeypatch.setattr(online_report, "film_side_by_side", film)
    assert made.render(run).name == "side_by_side.mp4"
    assert filmed == {"side_by_side.mp4": ["aligned"], "milestones.mp4": ["80 steps", "160 steps", "240 steps"]}
    text = made.report(run).read_text(encoding="utf-8")
    assert "One episode by aligned after 80 steps, 160 steps, 240 steps." in text


def test_where_nothing_can_be_rendered_the_reason_is_said(whole, monkeypatch, capsys):
    """No film, no error; the report has the reason."""
    run = whole("sac")[1]
    made = recipe("sac", **(OPTIONS["sac"] | {"recipe__video_arms": "[aligned]"}))

    def film(*args, **kwargs):
        raise online_report.VideoUnavailable("No video: nothing draws here.")

    monkeypatch.setattr(online_report, "film_side_by_side", film)
    assert made.render(run) is None
    assert "nothing draws here" in capsys.readouterr().out
    assert "nothing draws here" in made.report(run).read_text(encoding="utf-8")


# teachers


def test_an_attribute_teacher_prefers_its_attribute(plain):
    """The segment with less action energy is the better one, whatever it earns."""
    run = plain[1]
    episodes, answers = read_dataset(run.path / "arms/aligned/dataset"), answers_of(run)
    energy = [episodes.segments(side).actions.square().sum((1, 2)).numpy() for side in (answers.first, answers.second)]
    assert np.array_equal(answers.p_first, (energy[0] < energy[1]).astype(float))


# the line beside the bar


def test_progress_says_answers_accuracy_and_return(plain):
    """At every stop what is known by then; outside a terminal, at the end."""
    *_, notes, printed = plain
    assert [step for _, step, _, _ in notes] == [40, 80, 120, 160, 200]
    assert "answers" not in notes[0][3]
    assert "7 answers" in notes[1][3]
    assert all(part in notes[-1][3] for part in ("14 answers", "% right", "return"))
    assert f"aligned: 200/200 done ({notes[-1][3]})" in printed


def test_a_refit_knows_nothing_of_earlier_fits(tmp_path):
    """The reward at the end is one fitted from new weights to all answers, as if there had been no session before."""
    settings = recipe(recipe__refit=True).settings
    run = trained(tmp_path, settings)
    steps = np.cumsum(read_dataset(run.path / "arms/aligned/dataset").lengths)
    last = settings.sessions_at()[-1]
    episodes = read_dataset(run.path / "arms/aligned/dataset").select(np.flatnonzero(steps <= last))
    data = episodes.transitions(torch.zeros(episodes.num_steps))
    score = settings.score(observations=data.observations, actions=data.actions, seed=settings.seed)
    comparisons = answers_of(run).comparisons(episodes).without_true_reward()
    settings.fit(score, comparisons, seed=settings.seed + settings.sessions - 1, split_seed=settings.seed,
                 optimizer=score_optimizer(score))  # fmt: skip
    found = state(run)["score"]
    assert all(torch.equal(weights, found[name]) for name, weights in score.state_dict().items())
