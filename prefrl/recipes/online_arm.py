"""One arm of an online run: PEBBLE (Lee et al. 2021, arXiv 2106.05091) from the first step to the evaluation.

The agent explores by the entropy of its states. Then come sessions: pairs of segments of its episodes are asked, a
reward is fitted to all answers so far, what the agent remembers is relabelled with it, and the agent goes on. With PPO
it is PrefPPO (B-Pref, Lee et al. 2021, arXiv 2111.03026). The other arms differ in the reward alone: they explore
alike, but for one, and get theirs where the first session would be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prefrl.data.dataset import Episodes
from prefrl.data.labeling import answer_generator, label
from prefrl.data.preferences import write_preferences
from prefrl.data.query import NOTHING_ASKED, UniformQuery, num_segments
from prefrl.data.storage import write_dataset
from prefrl.errors import ConfigError, DamagedFile
from prefrl.evaluation.pair_accuracy import JUDGED, pair_accuracy
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.progress import progress_note
from prefrl.queries import Questions, questions_due, session_sizes
from prefrl.recipes.arms import summary
from prefrl.recipes.online_answers import AnswerBook, Recent
from prefrl.recipes.online_policies import POLICY, judge, keep_milestone, keep_policy
from prefrl.recipes.online_reward import meta_step, optimistic, unlabelled_pairs
from prefrl.recipes.online_settings import ARMS_ONLINE, ASKING, SCORED, OnlineSettings
from prefrl.runs import MetricLogger, RunDirectory
from prefrl.train.exploration import state_entropy_reward
from prefrl.train.fit_score import score_optimizer
from prefrl.train.moments import RunningMoments
from prefrl.train.relabel import relabel

__all__ = ["ARMS_ONLINE", "ASKING", "OnlineArm", "OnlineSettings", "run_online_arm"]

FROM_START = "true_reward_from_start"
LAST_EPISODES = 10  # by whose rewards a rater's thresholds are scaled (B-Pref's code)


class OnlineArm:
    """What an arm is made of while it runs; equal seeds give equal runs, interrupted or not."""

    def __init__(self, arm: str, folder: Path, settings: OnlineSettings) -> None:
        self.arm, self.settings, self.folder = arm, settings, folder
        self.learner = settings.online_agent(make_env=settings.env, seed=settings.seed)
        self.book = AnswerBook(folder / "answers.safetensors")
        self.score: Any = None
        self.optimizer: Any = None  # of the score, kept from session to session
        self.sessions: list[dict[str, Any]] = []  # what each has found
        self.moments = RunningMoments()  # of the exploration's rewards so far
        self.unlogged: dict[str, float] | None = None  # metrics of the last steps, before their session was held
        self.saved = 0  # steps in the checkpoint
        if self.checkpoint.is_file():
            self.load(load_checkpoint(self.checkpoint))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def train(self, show: Callable[[int, str], None]) -> None:
        """From the last checkpoint to the last step; ``show(step, in words)`` at each stop."""
        settings, learner, known = self.settings, self.learner, dict[str, float]()
        sessions = {step: session for session, step in enumerate(settings.sessions_at())}
        milestones = settings.milestones_at()
        logged = learner.steps - (self.unlogged is not None)
        with MetricLogger(self.folder, resume_step=logged, tensorboard=settings.tensorboard) as log:
            for stop in (stop for stop in settings.stops() if stop > logged):
                metrics = self.collect(stop - learner.steps) if self.unlogged is None else self.unlogged
                if stop in sessions:
                    self.unlogged = metrics
                    self.save(due=self.arm in ASKING)  # answers are about these very episodes
                    metrics = metrics | self.hold(sessions[stop])
                if self.arm in ASKING and settings.is_meta(stop):
                    metrics = metrics | self.learn_through_critic()
                log.log(stop, **{name: value for name, value in metrics.items() if name != "steps"})
                self.unlogged = None
                if stop in milestones:
                    keep_milestone(self.folder, stop, learner.policy)
                self.save(due=stop == settings.steps or stop - self.saved >= settings.checkpoint_every)
                known |= metrics
                show(stop, progress_note(known))

    def collect(self, steps: int) -> dict[str, float]:
        """Act and learn: from the entropy of states at first (PEBBLE, §4.1), then from the arm's reward."""
        if self.learner.steps < self.settings.explore_steps and self.arm != FROM_START:
            return self.learner.collect(steps, batch_reward=self.novelty)
        reward = self.reward()
        if self.settings.bonus and callable(reward):  # of each batch anew, since the bonus decays from step to step
            return self.learner.collect(steps, reward=reward, batch_reward=reward)
        return self.learner.collect(steps, reward=reward)

    def novelty(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B,) of states among all that may be replayed; over its running deviation, if that is wished (B-Pref)."""
        k, form = self.settings.explore_neighbors, self.settings.explore_form
        found = state_entropy_reward(observations, self.learner.states(), k=k, form=form)
        if not self.settings.explore_normalize:
            return found
        self.moments = self.moments.updated(found)
        return self.moments.normalize(found, center=False)

    def reward(self) -> Callable[[Tensor, Tensor], Tensor] | Literal["env"] | None:
        """What this arm learns from once exploration is over."""
        if self.arm in ("true_reward", FROM_START):
            return "env"
        if self.arm == "zero":
            return None
        if not self.settings.bonus:
            return lambda observations, actions: self.sign * relabel(self.score, observations, actions)
        return lambda observations, actions: optimistic(
            self.score, observations, actions, sign=self.sign, step=self.learner.steps,
            beta=self.settings.bonus, decay=self.settings.bonus_decay,
        )  # fmt: skip

    @property
    def sign(self) -> int:
        """-1 where the negative of what was learned is learned from."""
        return -1 if self.arm == "negated" else 1

    def hold(self, session: int) -> dict[str, float]:
        """A session: ask, fit, relabel (PEBBLE, §4.2, §4.3). After the first, values start anew. Returns metrics."""
        if (session and self.arm not in ASKING) or self.arm == FROM_START:
            return {}
        episodes = Episodes(**self.learner.episodes()._asdict())
        if self.arm in SCORED and self.score is None:
            self.make_score(episodes)
        found: dict[str, Any] = {}
        if self.arm in ASKING:
            self.ask(episodes, session)
            found = {"asked": self.book.asked(session + 1), "answered": self.book.answered(session + 1)}
            if session == 0 or self.book.asked(session) < self.book.asked(session + 1):
                found |= self.explain(episodes, session)
        if self.score is not None:
            found["reward_accuracy"] = self.accuracy(episodes)
        self.sessions.append({"step": self.learner.steps, **found})
        self.learner.relabel(self.reward())
        if session == 0:
            self.learner.reset_critic()
        return {name: value for name, value in found.items() if value is not None}

    def ask(self, episodes: Episodes, session: int) -> None:
        """Put the session's questions and answers into the book, unless a killed run has left them there."""
        if session < len(self.book):
            return self.book.require_about(episodes, session)
        settings, book = self.settings, self.book
        self.require_comparable(episodes)
        questions = Questions(Recent(settings.query, last=settings.recent_episodes))
        book.remember(questions, session)
        due = questions_due(
            session_sizes(
                settings.comparisons, settings.sessions, schedule=settings.schedule, first_share=settings.first_share
            ),
            session, asked=len(questions), answered=book.answered(session), budget=settings.budget,
        )  # fmt: skip
        if due == 0:
            return book.add(None, questions, episodes)
        new = label(
            episodes, teacher=settings.teacher, comparisons=due, segment_length=settings.segment_length,
            query=questions.about(episodes, self.score) if session else questions.about(),
            rng=answer_generator(settings.seed, len(questions)), known=book.answers(session), session=session,
            last_episodes=LAST_EPISODES, ask_again=settings.budget == "answers",
        )  # fmt: skip
        return book.add(new, questions, episodes)

    def require_comparable(self, episodes: Episodes) -> None:
        """Segments fit into episodes, and the agent cannot choose how long it is rewarded."""
        lengths, T = episodes.lengths[-self.settings.recent_episodes :], self.settings.segment_length
        if num_segments(lengths, T).sum() < 2:
            raise ConfigError(
                f"recipe.segment_length={T}: the last {len(lengths)} episodes, of at most {lengths.max()} steps, "
                "do not hold two such segments. Lower it, or raise recipe.recent_episodes or recipe.explore_steps."
            )
        lengths, ended = episodes.lengths, int(episodes.terminated.sum())
        if ended and lengths.min() < lengths.max() and not self.settings.allow_variable_horizon:
            raise ConfigError(
                f"{ended} of {len(lengths)} episodes came to a terminal state; they have {lengths.min()} to "
                f"{lengths.max()} steps. Comparisons of equally long segments do not say what going on is worth, but "
                "an agent is paid for it by a learned reward above 0, and for ending by one below (arXiv 2211.11972). "
                "Let the environment go on, as with env=hopper env.terminate_when_unhealthy=false, or set "
                "recipe.allow_variable_horizon=true."
            )

    def make_score(self, episodes: Episodes) -> None:
        """Inputs are standardized, if at all, by these episodes, and stay so until another is made."""
        data = episodes.transitions(torch.zeros(episodes.num_steps))
        self.score = self.settings.score(observations=data.observations, actions=data.actions, seed=self.settings.seed)
        self.optimizer = score_optimizer(self.score)

    def explain(self, episodes: Episodes, session: int) -> dict[str, Any]:
        """Go on fitting the reward to all answers so far, or, if it is wished, fit another one."""
        answers, seed = self.book.answers(session + 1), self.settings.seed
        if answers is None or len(answers) == 0:
            raise ConfigError(
                f"The teacher skipped all of the {self.book.asked(session + 1)} questions so far, so there is nothing "
                "to learn from. Lower teacher.skip, set recipe.budget=answers, or raise recipe.comparisons."
            )
        if self.settings.refit and session:
            self.make_score(episodes)
        fitted = self.settings.fit(
            self.score, answers.comparisons(episodes).without_true_reward(), seed=seed + session, split_seed=seed,
            optimizer=self.optimizer, **self.unasked(episodes, session, answered=len(answers)),
        )  # fmt: skip
        names = ("epochs", "train_accuracy", "train_nll", "heldout_comparisons", "heldout_accuracy", "heldout_nll")
        return {name: getattr(fitted, name) for name in names}

    def unasked(self, episodes: Episodes, session: int, *, answered: int) -> dict[str, Any]:
        """SURF (arXiv 2203.10050): the fit gets pairs that nobody answered too, if that is wished; no one is asked."""
        settings = self.settings
        if not settings.unlabelled or settings.semi_supervised is None:
            return {}
        first, second = unlabelled_pairs(
            episodes, round(settings.unlabelled * answered), segment_length=settings.segment_length,
            recent_episodes=settings.recent_episodes, seed=settings.seed, session=session,
        )  # fmt: skip
        return {"augment": settings.semi_supervised(first, second)}

    def learn_through_critic(self) -> dict[str, float]:
        """The reward's step by MRN (arXiv 2211.07241), on the answers of the last session that has any; relabel."""
        if self.settings.meta is None:
            raise ConfigError("recipe.meta_every needs recipe.meta, which knows the critic's next update.")
        held = len(self.sessions)
        begin = next(n for s in reversed(range(held)) if (n := self.book.answered(s)) < self.book.answered(held))
        answers = self.book.answers(held)
        assert answers is not None  # explain has refused that
        comparisons = answers[begin:].comparisons(Episodes(**self.learner.episodes()._asdict())).without_true_reward()
        update = self.settings.meta(self.learner)
        loss = meta_step(self.score, self.optimizer, comparisons, update, sign=self.sign)
        self.learner.relabel(self.reward())
        return {"meta_loss": loss}

    def accuracy(self, episodes: Episodes) -> float | None:
        """Share of random pairs of segments that the score orders as the true reward does; it learns nothing of it."""
        T = self.settings.segment_length
        if UniformQuery().remaining(episodes.lengths, T, NOTHING_ASKED) < JUDGED:
            return None
        data = episodes.transitions(torch.zeros(episodes.num_steps))
        return pair_accuracy(relabel(self.score, data.observations, data.actions), episodes, T, seed=self.settings.seed)

    def save(self, *, due: bool) -> None:
        """Everything but the answers, which have a file of their own; where the environment can be kept now."""
        if not due or not self.learner.saveable:
            return
        state = {
            "learner": self.learner.state_dict(),
            "score": {} if self.score is None else dict(self.score.state_dict()),
            "optimizer": {} if self.optimizer is None else self.optimizer.state_dict(),
            "sessions": self.sessions,
            "unlogged": self.unlogged,
            "moments": asdict(self.moments),
        }
        save_checkpoint(self.checkpoint, state)
        self.saved = self.learner.steps

    def load(self, state: dict[str, Any]) -> None:
        if not {"learner", "score", "optimizer", "sessions", "unlogged"} <= state.keys():
            raise DamagedFile(
                f"{self.checkpoint} is not the checkpoint of an online run. Restore it; or delete it, and the arm "
                "begins anew with the answers that it has."
            )
        self.learner.load_state_dict(state["learner"])
        self.sessions, self.unlogged, self.saved = state["sessions"], state["unlogged"], self.learner.steps
        if self.arm in ASKING:
            self.book.asked(len(self.sessions))  # an error where answers of these are missing
        self.moments = RunningMoments(**state.get("moments", {}))  # older checkpoints have none
        if state["score"]:
            self.make_score(Episodes(**self.learner.episodes()._asdict()))
            self.score.load_state_dict(state["score"])
            self.optimizer.load_state_dict(state["optimizer"])

    def write_dataset(self) -> None:
        """All finished episodes with all answers, as a dataset that other recipes and commands take."""
        answers, place = self.book.answers(len(self.book)), self.folder / "dataset"
        if answers is not None:
            shutil.rmtree(place, ignore_errors=True)  # left by a killed run
            write_dataset(place, Episodes(**self.learner.episodes()._asdict()))
            write_preferences(place, answers)


def run_online_arm(
    arm: str, *, path: Path, settings: OnlineSettings, show: Callable[[str, int, int, str], None] | None = None
) -> None:
    """Train one arm from its last checkpoint, evaluate it on the shared seeds, and mark it as finished."""
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.set_num_threads(settings.threads)
    run = RunDirectory.open(path)
    at_work = OnlineArm(arm, run.stage(f"arms/{arm}"), settings)
    try:
        at_work.train(lambda step, note: None if show is None else show(arm, step, settings.steps, note))
        keep_policy(at_work.folder / POLICY, at_work.learner.policy)
        judged = judge(at_work.learner.policy, settings, episodes=settings.episodes, seed=settings.seed + 1)
        at_work.write_dataset()
    finally:
        at_work.learner.close()
    run.finish(f"arms/{arm}", {**summary(judged), "sessions": at_work.sessions})
