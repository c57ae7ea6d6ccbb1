"""Keys of recipe online: what is wrong, does not fit together or has no effect is named before there is a run."""

from dataclasses import replace

import pytest
from tiny_online import SURF, recipe

from prefrl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("restored")

CROPS = "{_target_: prefrl.train.semi_supervised.semi_supervised, crop: [4, 5]}"


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("regret_tabular", "TabularOracle"), ("regret_lqr", "LinearQuadraticOracle"),
        ("regret_sac", "teacher.oracle.critic.path"),
    ],
)  # fmt: skip
def test_an_oracle_without_what_it_needs_is_refused_before_the_run(teacher, message):
    """Tables, linear dynamics, or a trained critic's file: none is there in an online run of this environment."""
    with pytest.raises(ConfigError, match=message):
        recipe(teacher=teacher)


@pytest.fixture(scope="module")
def usual():
    """Without options; but for those that need others."""
    return recipe(), recipe(**SURF)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bonus": -1}, r"recipe.bonus must be in \[0, inf\), but is -1"),
        ({"bonus": 1, "bonus_decay": 1}, r"recipe.bonus_decay must be in \[0, 1\)"),
        ({"unlabelled": -1}, r"recipe.unlabelled must be in \[0, inf\), but is -1"),
        ({"meta_every": 30}, "recipe.meta_every must be >= 0 and a multiple of recipe.log_every=40, but is 30"),
        ({"milestones": -1}, "recipe.milestones must be >= 0, but is -1"),
    ],
)
def test_wrong_values_of_options_are_named(usual, changed, message):
    """The key, its value, what is allowed, before there is a run."""
    with pytest.raises(ConfigError, match=message):
        replace(usual[0], **changed)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("recipe.bonus_decay", "recipe.bonus=0"), ("recipe.semi_supervised.threshold", "recipe.unlabelled=0"),
        ("recipe.meta.batch_size", "recipe.meta_every=0"),
    ],
)  # fmt: skip
def test_options_of_what_is_off_have_no_effect(usual, key, message):
    """It says what turns them on."""
    assert usual[0].ineffective(key).startswith(message)
    assert usual[1].ineffective("recipe.semi_supervised.threshold") is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe__bonus": 1, "score__members": 1}, "needs score.members >= 2"),
        (SURF | {"recipe__unlabelled": 0}, "recipe.semi_supervised.threshold has no effect: recipe.unlabelled=0"),
        (SURF | {"recipe__semi_supervised__threshold": 0.4}, r"threshold must be in \[0.5, 1\), but is 0.4"),
        (SURF | {"recipe__fit__augment": CROPS}, "takes the place of recipe.fit.augment, which must be null"),
        ({"recipe__fit__augment": CROPS.replace("crop", "_partial_: true, crop")}, "set recipe.unlabelled"),
        ({"recipe__meta_every": 40, "recipe__meta__batch_size": 0}, "recipe.meta: batch_size must be >= 1"),
    ],
)
def test_options_that_do_not_fit_together_are_named(changed, message):
    """In the words that were given."""
    with pytest.raises(ConfigError, match=message):
        recipe(**changed)


def test_random_actions_make_the_rewards_of_exploration_idle():
    """Where the agent learns nothing before the first session, nothing of state entropy can matter."""
    idle = recipe(online_agent__learning_starts=80)
    assert str(idle.ineffective("recipe.explore_form")).startswith("online_agent.learning_starts=80")
    assert recipe().ineffective("recipe.explore_form") is None
