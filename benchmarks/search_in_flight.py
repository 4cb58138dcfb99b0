"""Several leaves of a tree in flight against one: whether the search is the same, and how much sooner it ends.

Scripted trees of three regimes (high, mixed and low scores; short and long talks; strong and flat priors) with the
published constants, every other tree from a seed dialogue. Calls take equally long and are all made at once, so the
time is a number of rounds. Calls that no tree is made from were foreseen in vain.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1]))  # the scripted roles are the tests'

from esc_lab.config.search import MCTSConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.search.preferences import find_preferences
from tests.search.oracle import REGIMES, Regime, grow

COUNTS = ("pairs", "ended leaves", "iterations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=200, help="trees of each regime")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    table = Table("regime", "in flight", *COUNTS, "rounds", "calls", "in vain", "times faster")
    worst, different, faster, in_vain = 1.0, 0, [], []
    for regime in REGIMES:
        plain, states = measure(regime, options.trees, 1)
        for number in (1, *options.in_flight):
            found, others = (plain, states) if number == 1 else measure(regime, options.trees, number)
            gain, unused = plain["rounds"] / found["rounds"], 1 - plain["calls"] / found["calls"]
            cells = (*COUNTS, "rounds", "calls")
            table.add_row(
                regime.name, str(number), *(str(found[name]) for name in cells), f"{unused:.1%}", f"{gain:.2f}"
            )
            if number > 1:
                worst = max(worst, *(max(found[name] / plain[name], plain[name] / found[name]) for name in COUNTS))
                different += sum(one != other for one, other in zip(states, others, strict=True))
                faster, in_vain = [*faster, gain], [*in_vain, unused]
    Console(width=140).print(table)
    print(f"calls made in vain: {min(in_vain):.1%} to {max(in_vain):.1%} of all")
    print(f"trees that differ from those of one leaf at a time: {different} (goal 0)")
    print(f"pairs, ended leaves and iterations, largest ratio to one leaf at a time: {worst:.3f} (goal <= 1.05)")
    print(f"search_in_flight_speedup: {min(faster):.2f} to {max(faster):.2f} (goal >= 3)")


def measure(regime: Regime, trees: int, in_flight: int) -> tuple[Counter[str], list[object]]:
    """What trees hold and took, and the trees."""
    found, states = Counter[str](), []
    settings = MCTSConfig(in_flight=in_flight)
    names = load_inventory("cso").names
    for seed in range(trees):
        grown = grow(regime, seed, names, settings)
        tree = grown.search.tree
        preferences = find_preferences(tree, settings.preferences)
        found.update({
            "pairs": sum(map(len, preferences.rejected.values())),
            "ended leaves": tree.count_ended(),
            "iterations": tree.iterations,
            "rounds": grown.rounds,
            "calls": grown.calls,
        })  # fmt: skip
        states.append(hash(str(tree.state())))
    return found, states


if __name__ == "__main__":
    main()
