"""Laws that every row of the table of losses obeys, whatever its formula."""

import dataclasses
import inspect
import math
import re

import pytest
import torch
from loss_inputs import Inputs, leaves

from prefrl.losses import INPUTS, LOSSES, DenoisingErrors, Pairs, with_soft_labels

ROWS = sorted(LOSSES)
PAIRED = [name for name in ROWS if LOSSES[name].takes == "pairs"]
LISTS = [name for name in ROWS if LOSSES[name].takes == "lists"]
WHOLE_BATCH = {"aot", "aot_unpaired"}  # they sort the margins of the batch
LOG_TWO = {
    "dpo", "cdpo", "rdpo", "osp", "ln_dpo", "tpo", "ddpo", "ld_dpo", "smpo", "aot", "aot_unpaired", "f_dpo", "lcpo",
    "diffusion_dpo", "flow_dpo", "diffusion_smpo", "seppo", "cpl_kl",
}  # fmt: skip
# by design: those that have passed their target, follow given rewards, or weigh the pair by something
FREE_SIGN = {"copg", "p3o", "seppo"}


def scaled(row, factor, dtype, *, wrong):
    """Inputs that lead by ``factor`` / β, in favor of what is rejected, undesirable or ranked last if ``wrong``."""
    beta = row.defaults.get("beta") or row.defaults.get("alpha") or 1.0
    gap = factor / beta
    first, *further = Inputs(2, dtype=dtype, seed=3).draw(row)
    if isinstance(first, Pairs):
        behind = Pairs(trailing(first.chosen, gap), leading(first.rejected))
        ahead = Pairs(leading(first.chosen), trailing(first.rejected, gap))
        first = behind if wrong else ahead
    elif row.takes == "lists":
        ranks = first.score.argsort(-1, descending=not wrong).argsort(-1)
        first = trailing(first, gap * ranks.to(torch.float32))
    elif hasattr(first, "policy"):
        first = trailing(first, gap) if wrong else leading(first)
    else:
        first = torch.full_like(first, -gap if wrong else gap).requires_grad_()
    return [first, *further]


def trailing(side, gap):
    """A sequence whose log-ratio is −gap, or whose error is 2 gap too large."""
    if isinstance(side, DenoisingErrors):
        policy = 1.0 + 2 * gap * torch.ones_like(side.policy)
    elif side.mask is not None:
        policy = -1.0 - gap / side.mask.sum(-1, keepdim=True) * torch.ones_like(side.policy)
    else:
        policy = -1.0 - gap * torch.ones_like(side.policy)
    return at_one(side, policy)


def leading(side):
    """A sequence whose log-ratio is 0."""
    sign = 1.0 if isinstance(side, DenoisingErrors) else -1.0
    return at_one(side, sign * torch.ones_like(side.policy))


def at_one(side, policy):
    sign = 1.0 if isinstance(side, DenoisingErrors) else -1.0
    reference = None if side.reference is None else sign * torch.ones_like(side.reference)
    return dataclasses.replace(side, policy=policy.detach().requires_grad_(), reference=reference)


def gradients(row, inputs, options=None):
    """The loss's values, and the gradient of their sum in each input that wants one (zeros where unused)."""
    values = row.function(*inputs, **(options or {}))
    wanted = leaves(inputs)
    found = torch.autograd.grad(values.sum(), wanted, allow_unused=True)
    return values, [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("name", ROWS)
def test_one_finite_value_per_item(name):
    """The caller reduces: a batch of B items has B values."""
    values = LOSSES[name].function(*Inputs(6).draw(LOSSES[name]))
    assert values.shape == (6,)
    assert values.isfinite().all()


@pytest.mark.parametrize("name", ROWS)
def test_an_empty_batch_has_no_values(name):
    """B = 0 is a batch too."""
    assert LOSSES[name].function(*Inputs(0).draw(LOSSES[name])).shape == (0,)


@pytest.mark.parametrize("name", ROWS)
def test_items_do_not_know_each_other(name):
    """The value of an item does not depend on the others, except where the batch is sorted."""
    if name in WHOLE_BATCH:
        pytest.skip("sorts the batch")
    row = LOSSES[name]
    both = Inputs(2, seed=5)
    inputs = both.draw(row)
    values = row.function(*inputs)
    for index in range(2):
        alone = [select(given, index) for given in inputs]
        torch.testing.assert_close(row.function(*alone)[0], values[index])


def select(given, index):
    """One item of a batch of any kind of input; what is not of the batch stays."""
    if isinstance(given, torch.Tensor) and not (given.ndim and len(given) == 2):
        return given
    return given[index : index + 1]


@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_those_of_finite_differences(name):
    """gradcheck in float64, with detached parts (weights, ranks, reference points) held where they were."""
    row = LOSSES[name]
    inputs = Inputs(3, seed=1).draw(row)
    if name in DETACHES:
        pytest.skip(f"has a part without gradient by definition: {DETACHES[name]}")
    wanted = leaves(inputs)

    def value(*_):
        return row.function(*inputs)

    # the inputs are captured: gradcheck perturbs the leaves in place
    assert torch.autograd.gradcheck(value, tuple(wanted), eps=1e-6, atol=1e-6)


DETACHES = {
    "wpo": "the pair's weight", "lcpo": "the posterior of the label", "lipo": "the ranks under the current scores",
    "kto": "the reference point", "seppo": "the sign", "p3o": "the clipped ratio",
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_float32_is_as_float64_but_for_rounding(name):
    """Values and gradients at ordinary inputs agree to single precision: no large constant cancels in between."""
    row = LOSSES[name]
    narrow, wide = (
        gradients(row, Inputs(5, seed=4, dtype=dtype).draw(row)) for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(narrow[0].double(), wide[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close([g.double() for g in narrow[1]], wide[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_half_precision_is_widened_at_once(name):
    """bfloat16 numbers give the float32 loss that the same numbers in float64 give."""
    row = LOSSES[name]
    inputs = Inputs(5, seed=4, dtype=torch.bfloat16).draw(row)
    values = row.function(*inputs)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), row.function(*map(doubled, inputs)), rtol=1e-4, atol=1e-5)


def doubled(given):
    """The same numbers in float64."""
    if isinstance(given, Pairs):
        return Pairs(doubled(given.chosen), doubled(given.rejected))
    if isinstance(given, torch.Tensor):
        return given.double() if given.is_floating_point() else given
    fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    floats = {name: value.double() for name, value in fields.items() if value is not None and value.is_floating_point()}
    return dataclasses.replace(given, **floats)


@pytest.mark.parametrize("name", ROWS)
def test_only_the_policy_learns(name):
    """References, older policies, scores and labels are constants, even where they ask for a gradient."""
    row = LOSSES[name]
    if row.takes in ("scores", "distributions"):
        pytest.skip("takes plain tensors")
    first, *further = Inputs(3, extra=True).draw(row)
    constants = []

    def asking(side):
        found = {}
        for field in dataclasses.fields(side):
            value = getattr(side, field.name)
            if field.name != "policy" and value is not None and value.is_floating_point():
                found[field.name] = value.clone().requires_grad_()
                constants.append(found[field.name])
        return dataclasses.replace(side, **found)

    first = Pairs(asking(first.chosen), asking(first.rejected)) if isinstance(first, Pairs) else asking(first)
    assert constants
    row.function(first, *further).sum().backward()
    assert all(constant.grad is None for constant in constants)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("margin", [0.0, 1.0, 88.0, 1e3, 1e4])
@pytest.mark.parametrize("name", ROWS)
def test_extreme_margins_are_finite(name, margin, dtype):
    """Value and gradient are finite wherever a policy may go, in favor of either sequence."""
    row = LOSSES[name]
    if row.takes == "distributions":
        pytest.skip("takes distributions")
    for wrong in (True, False):
        values, found = gradients(row, scaled(row, margin, dtype, wrong=wrong))
        assert values.isfinite().all(), values
        assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("name", sorted(set(PAIRED) - FREE_SIGN))
def test_a_confident_mistake_is_corrected(name):
    """Where the rejected sequence leads by 1e3, the loss pulls the two apart, and neither the wrong way."""
    row = LOSSES[name]
    if name in BOUNDED:
        pytest.skip(f"by definition: {BOUNDED[name]}")
    _, (chosen, rejected, *_) = gradients(row, scaled(row, 1e3, torch.float32, wrong=True))
    assert chosen.sum() < 0 or rejected.sum() > 0
    assert chosen.sum() <= 0 <= rejected.sum()


BOUNDED = {
    "apo_zero": "a sigmoid of each ratio", "apo_down": "a sigmoid of each ratio", "exo": "at most log 1/ε",
    "cpl_bc": "it clones both sequences", "lcpo": "it takes the label for a mistake",
    "wpo": "the weight of an unlikely pair", "reward_mae": "a sigmoid of the difference", "reward_gce": "at most 1 / q",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LOG_TWO & set(ROWS)))
def test_log_two_at_the_reference(name):
    """Logistic rows are log 2 where the policy is the reference."""
    row = LOSSES[name]
    inputs = Inputs(4).draw(row)
    if isinstance(inputs[0], Pairs):
        sides = [dataclasses.replace(s, policy=s.reference.clone()) for s in (inputs[0].chosen, inputs[0].rejected)]
        inputs[0] = Pairs(*sides)
    values = row.function(*inputs)
    torch.testing.assert_close(values, torch.full_like(values, math.log(2)))


@pytest.mark.parametrize("name", [name for name in PAIRED if LOSSES[name].soft])
def test_swapping_a_pair_and_its_label_changes_nothing(name):
    """Lifted to soft labels, (first, second, p) and (second, first, 1 − p) say the same."""
    row = LOSSES[name]
    pairs, *further = Inputs(5).draw(row)
    if further:
        pytest.skip("has labels of its own")
    lifted, p_first = with_soft_labels(row.function), torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(lifted(pairs, p_first), lifted(pairs.swapped(), 1 - p_first))


@pytest.mark.parametrize("name", [name for name in ROWS if set(LOSSES[name].needs) & set(INPUTS)])
def test_a_missing_input_is_named(name):
    """What a row needs and does not get is an error that names row and input."""
    row = LOSSES[name]
    for need in sorted(set(row.needs) & set(INPUTS)):
        inputs = Inputs(3).draw(row)
        fields = {"steps": ["mask", "corrected"], "length": ["length", "mask", "corrected"]}.get(need, [need])

        def without(side, fields=fields):
            kept = dict.fromkeys([f for f in fields if hasattr(side, f)])
            if "mask" in kept and side.mask is not None:  # log-probs of steps become those of whole sequences
                whole = side.weighted(side.mask.to(side.policy.dtype))
                side = dataclasses.replace(whole, length=None)
            return dataclasses.replace(side, **kept)

        given = inputs[0]
        given = Pairs(without(given.chosen), without(given.rejected)) if isinstance(given, Pairs) else without(given)
        with pytest.raises(ValueError, match=rf"{name} needs .*{need}"):
            row.function(given, *inputs[1:])


@pytest.mark.parametrize("name", ROWS)
def test_inputs_that_are_not_needed_are_not_read(name):
    """What the table does not list under needs changes nothing."""
    row = LOSSES[name]
    if row.takes in ("scores", "distributions"):
        pytest.skip("takes plain tensors")
    full = Inputs(4, extra=True).draw(row)

    def bare(side):
        optional = {f.name for f in dataclasses.fields(side)} - {"policy", "mask", *row.needs}
        return dataclasses.replace(side, **dict.fromkeys(optional))

    needed = full[0]
    needed = Pairs(bare(needed.chosen), bare(needed.rejected)) if isinstance(needed, Pairs) else bare(needed)
    torch.testing.assert_close(row.function(needed, *full[1:]), row.function(*full), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in ROWS if LOSSES[name].takes in ("pairs", "sequences", "lists")])
def test_padding_is_never_read(name):
    """NaN at masked steps of policy and reference reaches neither the values nor the gradients."""
    row = LOSSES[name]
    steps = dataclasses.replace(row, needs=(*row.needs, "steps"))
    inputs = Inputs(4).draw(steps)

    def poisoned(side):
        filled = {
            field: torch.where(side.mask, value, torch.nan)
            for field in ("policy", "reference", "old", "history")
            if (value := getattr(side, field)) is not None
        }
        filled["policy"] = filled["policy"].detach().requires_grad_()
        return dataclasses.replace(side, **filled)

    clean = row.function(*inputs)
    first = inputs[0]
    first = Pairs(poisoned(first.chosen), poisoned(first.rejected)) if isinstance(first, Pairs) else poisoned(first)
    dirty = [first, *inputs[1:]]
    values, found = gradients(row, dirty)
    torch.testing.assert_close(values, clean)
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("name", ROWS)
def test_an_unknown_option_is_named(name):
    """A misspelt option is an error that lists those there are."""
    row = LOSSES[name]
    with pytest.raises(ValueError, match=rf"{name} has no option 'bta'"):
        row.function(*Inputs(2).draw(row), bta=1.0)


# other values for options that are no plain number, or whose effect needs another option
OTHERS = {
    ("ipo", "average"): {"average": True},
    ("f_dpo", "divergence"): {"divergence": "forward_kl"},
    ("f_dpo", "alpha"): {"divergence": "alpha_divergence", "alpha": 0.3},
    ("d3po", "clip"): {"clip": "both"},
    ("p3o", "clipping"): {"clipping": "joint"},
    ("p3o", "clip_range"): {"clip_range": 0.01},
    ("seppo", "flip"): {"flip": False},
    ("flow_dpo", "time"): {"time": torch.full((8,), 0.3, dtype=torch.float64)},
    ("mnpo", "history_weights"): {"history_weights": (0.9, 0.1)},
    ("mapo", "timesteps"): {"timesteps": 10},
    ("pro", "sft_weight"): {"sft_weight": 0.7},
    ("reward_bradley_terry", "margin"): {"margin": 0.5},
    ("cpl_bc", "bc_data"): {"bc_data": "chosen"},
    ("opa_dpo", "released_sign"): {"released_sign": True},
    ("rwr", "max_weight"): {"max_weight": 0.5},
    ("flow_rwr", "max_weight"): {"max_weight": 0.5},
    ("wpo", "alignment"): None,  # a further pair of log-probs: tests/test_losses_scored.py
    **{(name, "valid"): {"valid": torch.tensor([[True, True, True, False]] * 8)} for name in LISTS},
}
OPTIONS = [(name, option) for name in ROWS for option in LOSSES[name].defaults]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{name}-{option}" for name, option in OPTIONS])
def test_every_option_has_an_effect(name, option):
    """Another value of an option changes the values or the gradients."""
    row, default = LOSSES[name], LOSSES[name].defaults[option]
    other = OTHERS[name, option] if (name, option) in OTHERS else {option: default * 0.7 if default else 0.2}
    if other is None:
        pytest.skip("has a test of its own")
    drawn = dataclasses.replace(row, needs=(*row.needs, "steps" if "discount" in row.defaults else "length"))

    def both(options):
        values, found = gradients(row, Inputs(8, seed=2).draw(drawn), options)
        return torch.cat([values.flatten(), *(gradient.flatten() for gradient in found)]).detach()

    assert not torch.equal(both(other), both({}))


@pytest.mark.parametrize("name", ROWS)
def test_docstrings_cite_their_source(name):
    """Every row has a one-line summary, a source with an arXiv id, a doctest and shapes."""
    row = LOSSES[name]
    text = inspect.getdoc(row.function)
    assert re.search(r"arXiv \d{4}\.\d{4,5}|Mitchell 2023", row.paper), row.paper
    assert row.summary
    assert ">>>" in text
    assert "(B" in text


@pytest.mark.parametrize("name", ROWS)
def test_options_are_keywords_with_defaults(name):
    """Hyper-parameters are keyword-only, and each has a default."""
    for parameter in inspect.signature(LOSSES[name].function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default is not parameter.empty, parameter.name
