"""Find strategies by name. The interface is in `teachers.strategies.base`; each strategy has a file beside it."""

from collections.abc import Callable, Mapping
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.strategies.base import Bounds, Order, Ranked, ScoredOrder, Steps, Strategy, Window, apply, run
from teachers.strategies.consistent import Consistent
from teachers.strategies.pairwise import Pairwise
from teachers.strategies.pointwise import Pointwise
from teachers.strategies.setwise import Setwise
from teachers.strategies.sliding import Sliding
from teachers.strategies.top_down import TopDown
from teachers.strategies.tournament import Tournament
from teachers.strategies.whole import Full, Single

__all__ = [
    "PARAMETERS",
    "STRATEGIES",
    "Bounds",
    "Consistent",
    "Full",
    "Order",
    "Pairwise",
    "Pointwise",
    "Ranked",
    "ScoredOrder",
    "Setwise",
    "Single",
    "Sliding",
    "Steps",
    "Strategy",
    "TopDown",
    "Tournament",
    "Window",
    "apply",
    "run",
    "strategy",
]

_BUILDERS: Mapping[str, Callable[..., Strategy]] = {
    "sliding": Sliding,
    "single": Single,
    "full": Full,
    "top-down": TopDown,
    "tournament": Tournament,
    "pointwise": Pointwise,
    "setwise": Setwise,
    "pairwise": Pairwise,
}
_TAKES = {
    "sliding": ("window", "stride", "passes"),
    "single": ("window",),
    "full": (),
    "top-down": ("window", "pivot"),
    "tournament": ("window", "keep"),
    "pointwise": (),
    "setwise": ("children", "keep", "sort"),
    "pairwise": ("keep", "sort"),
}
STRATEGIES = tuple(_BUILDERS)
PARAMETERS = {"samples", "seed", "merge", *(name for taken in _TAKES.values() for name in taken)}


def strategy(
    name: str, *, samples: int = 1, seed: int = 0, merge: str = "borda", **parameters: Any
) -> Strategy:
    """Make the named strategy; parameters that are None take their defaults.

    If a window is given, stride and pivot default to half of it, and keep to a quarter.

    Args:
        samples: with more than one, self-consistency over that many shuffled orders.

    Raises:
        TeacherError: if the name is unknown, or the strategy has no such parameter.
    """
    if name not in _BUILDERS:
        raise TeacherError(
            f"no strategy named {name!r}", hint=f"known: {', '.join(STRATEGIES)}", exit_code=ExitCode.USAGE
        )
    given = {key: value for key, value in parameters.items() if value is not None}
    foreign = sorted(set(given) - set(_TAKES[name]))
    if foreign:
        raise TeacherError(
            f"the strategy {name} takes no {', '.join(foreign)}",
            hint=f"it takes: {', '.join(_TAKES[name]) or 'nothing'}",
            exit_code=ExitCode.USAGE,
        )
    if "window" in given:
        follow = {"stride": given["window"] // 2, "pivot": given["window"] // 2, "keep": given["window"] // 4}
        given |= {
            key: max(value, 1) for key, value in follow.items() if key in _TAKES[name] and key not in given
        }
    inner = _BUILDERS[name](**given)
    return Consistent(inner, samples, seed, merge) if samples > 1 else inner
