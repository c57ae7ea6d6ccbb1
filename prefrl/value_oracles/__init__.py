r"""Value oracles: who knows how good each state and action is in the true task, for preference models to read.

Knox et al. 2022, arXiv 2206.02231, label by optimal values of a known grid; Hejna et al. 2024, arXiv 2310.13639, by the
critics of a trained policy. Here all are one interface, :class:`ValueOracle`, and say who they are.

| oracle | values | knows |
|---|---|---|
| TabularOracle | exact, of a pool's successor features, or soft | every statistic |
| LinearQuadraticOracle | closed form | every statistic |
| CriticOracle | learned Q and V of a policy | every statistic, where the data have rewards |
| ScriptedOracle | none; distance to a script's actions stands in for the advantage | Σ A alone |

Sums over the real steps of a segment are not discounted; the discount is that of the values. After a terminal end state
the value is 0.
"""

from prefrl.value_oracles.critic import Critic, CriticOracle
from prefrl.value_oracles.interface import SIGN, ValueOracle
from prefrl.value_oracles.linear_quadratic import LinearQuadraticOracle
from prefrl.value_oracles.scripted import ScriptedOracle
from prefrl.value_oracles.tabular import TabularOracle

__all__ = [
    "SIGN",
    "Critic",
    "CriticOracle",
    "LinearQuadraticOracle",
    "ScriptedOracle",
    "TabularOracle",
    "ValueOracle",
]
