"""What acts and learns: policies, and learners that make them.

    networks.py   MLP, and N of them stacked in one tensor
    policies.py   Gaussian and deterministic policies with ``act`` and ``log_prob``
    bc.py         behavior cloning
    iql.py        implicit Q-learning (offline RL)
    cpl.py        contrastive preference learning: a policy straight from comparisons
    diffusion/    diffusion policies: behavior cloning, preference learning, and their core for other sequences
    sb3.py        a trained Stable-Baselines3 model as a policy
    sb3_critic.py its critics as Q and V, for teachers
    online_sac.py, online_ppo.py  learn while they act, from a reward that may change
    online_env.py, online_experience.py, online_randomness.py, env_state.py  what these act in, keep, draw and save
    kept_env.py   environments side by side, here or in processes of their own

A learner is made by ``Learner(data=, action_low=, action_high=, seed=, **hyper_parameters)`` and improved by
``update(batch)``; one that acts by ``Learner(make_env=, seed=, **hyper_parameters)`` and ``collect(steps, reward=)``
(see ``prefrl.protocols``). Import learners from their files: this package imports nothing.
"""

__all__: list[str] = []
