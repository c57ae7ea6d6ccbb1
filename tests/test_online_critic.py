"""Laws of the reward's step through the critic's next update (MRN, arXiv 2211.07241)."""

import functools

import numpy as np
import pytest
import torch
from tiny_online import recipe

import envs
from agents.online_critic import next_critic_update
from agents.online_sac import OnlineSAC
from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError
from prefrl.recipes.online_reward import meta_step
from prefrl.scores import ReturnEnsemble
from prefrl.train.fit_score import score_optimizer

pytestmark = pytest.mark.usefixtures("restored")


@pytest.fixture
def learner():
    made = OnlineSAC(
        make_env=functools.partial(envs.make, "prefrl/PointReach-v0", max_episode_steps=20), seed=0,
        learning_starts=20, batch_size=16, hidden=(16,),
    )  # fmt: skip
    made.collect(60, reward=lambda o, a: -o.square().sum(1))
    yield made
    made.close()


def test_the_critics_next_update_is_that_of_sac(learner):
    """Q in the environment's units, targets r + γ (min Q̄ − α log π), by a batch of the replay; nothing else moves."""
    before = learner.state_dict()
    update = next_critic_update(learner, batch_size=40)
    batch, model = update["batch"], learner.model
    scaled = torch.from_numpy(model.policy.scale_action(batch.actions.numpy()))
    expected = torch.cat(model.critic(batch.observations, scaled), 1).T
    torch.testing.assert_close(update["q"](batch.observations, batch.actions), expected)
    assert update["next_values"].shape == (40,)
    assert not update["next_values"].requires_grad
    all_steps = learner.world.experience.at(np.arange(60))
    known = torch.from_numpy(np.concatenate([all_steps.observations, all_steps.actions], 1))
    drawn = torch.cat([batch.observations, batch.actions], 1)
    assert (torch.cdist(drawn, known).amin(1) < 1e-3).all()
    after = learner.state_dict()
    assert all(torch.equal(w, after["policy"][name]) for name, w in before["policy"].items())
    assert not torch.equal(before["randomness"]["torch"], after["randomness"]["torch"])  # saved with all else


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_through_the_critic_explain_the_answers_better(learner, sign):
    """With one batch and one critic: the loss after the critic's update falls as the reward takes its steps."""
    torch.manual_seed(0)
    score = ReturnEnsemble(observation_size=2, action_size=2, members=2, hidden=[16], seed=0)
    update = next_critic_update(learner, batch_size=64) | {"learning_rate": 0.3}
    alone = torch.ones(12, 1, dtype=torch.bool)  # segments of one step
    sides = (SegmentBatch(torch.rand(12, 2, 2), torch.rand(12, 1, 2) - 0.5, alone) for _ in "ab")
    answers, optimizer = Comparisons(*sides, (torch.rand(12) > 0.5).float()), score_optimizer(score)
    for group in optimizer.param_groups:
        group.update(lr=1e-2, weight_decay=0.0)
    losses = [meta_step(score, optimizer, answers, update, sign=sign) for _ in range(15)]
    assert losses[-1] < losses[0]


def test_ppo_has_no_critic_to_step_through():
    """There is no Q-function: said before there is a run."""
    with pytest.raises(ConfigError, match=r"recipe.meta_every: OnlinePPO has no Q-function"):
        recipe("ppo", recipe__meta_every=40)
