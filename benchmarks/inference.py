"""Whether intervals and tests hold: coverage and size where the truth is planted.

Trainings of a method and dialogues are drawn from a population whose Q and B are known
(tests/statistics/simulation.py). Q: how often the interval over seeds and dialogues holds the population's value, and
how often the test calls two methods different that are equal, for 2 to 10 seeds, 12 to 195 dialogues, and three spreads
between seeds. B: how often its interval, about the value less the jackknife's bias, holds what one training has on all
dialogues; beside it the bias, and what is left of it. Judges: how often one that tells as much as words do passes the
check that decides whether it is believed, and how often one that tells more (tests/judge_check/simulation.py). Talks:
the same as of Q for two supporters that meet the same cards, with one talk or three a card, beside intervals for which
each talk had a card of its own (tests/statistics/talk_simulation.py). Beside these, what the bootstrap over seeds alone
would do.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

sys.path.insert(0, str(Path(__file__).parents[1]))

from esc_lab.statistics.crossed_effects import estimate_mean, subtract
from tests.judge_check.simulation import count_believed
from tests.statistics.simulation import Population, simulate_population
from tests.statistics.talk_simulation import count_covered

SEEDS, DIALOGUES = (2, 3, 5, 10), (12, 40, 195)
SPREADS = {"small": 0.03, "middle": 0.1, "large": 0.3}
BATCH = 250  # replications of a task
# Dialogues, their decisions on average, and what the method prefers: with 3.0 some strategies are never chosen.
B_CELLS = [(12, 7), (12, 14), (20, 14), (40, 14), (80, 14), (195, 14)]
PREFERENCES = (0.3, 0.8, 3.0)
# AUCs of judges and of words on hard kinds, on 60 contexts of each.
JUDGES = [(0.5, 0.5), (0.65, 0.65), (0.8, 0.8), (0.65, 0.5), (0.7, 0.5), (0.75, 0.65)]
JUDGED_DIALOGUES = (5, 8, 12, 40, 60)
CARDS, TALKS = (6, 12, 40), (1, 3)


def measure_q(population: Population, seeds: int, dialogues: int, repeats: int, seed: int) -> tuple[int, int]:
    """How many intervals hold the truth, and how many tests of equal methods say that they differ."""
    draw, truth = np.random.default_rng(seed), population.truth.mean()
    covered = different = 0
    for _ in range(repeats):
        chosen = draw.integers(len(population.counts), size=dialogues)
        ours, theirs = (population.draw(draw, seeds, chosen) for _ in range(2))
        interval, difference = estimate_mean(ours).interval(), estimate_mean(subtract(ours, theirs)).interval()
        covered += interval.low <= truth <= interval.high
        different += difference.low > 0 or difference.high < 0  # the same as p < 0.05: see the tests
    return covered, different


def measure_unequal(populations: tuple[Population, Population], repeats: int, seed: int) -> int:
    """How many intervals of a difference miss it, of methods whose seeds spread differently; 3 seeds, 195 dialogues."""
    draw = np.random.default_rng(seed)
    truth = populations[0].truth.mean() - populations[1].truth.mean()
    missed = 0
    for _ in range(repeats):
        chosen = draw.integers(len(populations[0].counts), size=195)
        interval = estimate_mean(subtract(*(one.draw(draw, 3, chosen) for one in populations))).interval()
        missed += not interval.low <= truth <= interval.high
    return missed


def measure_b(population: Population, dialogues: int, repeats: int, seed: int) -> tuple[float, float, int]:
    """Sums of the bias of B, and of what is left of it by the jackknife; how many intervals hold the truth."""
    draw, plain, corrected, covered = np.random.default_rng(seed), 0.0, 0.0, 0
    for _ in range(repeats):
        number = int(draw.integers(len(population.truth)))
        found = estimate_mean(population.run(np.array([number]), draw.integers(len(population.counts), size=dialogues)))
        interval, truth = found.interval(corrected=True), float(population.truth[number])
        plain, corrected = plain + found.value - truth, corrected + found.value - found.bias - truth
        covered += interval.low <= truth <= interval.high
    return plain, corrected, covered


def split(function: Callable[..., object], repeats: int, *arguments: object) -> Iterator[object]:
    """Tasks of `BATCH` replications, each with a seed of its own."""
    for number in range(max(1, repeats // BATCH)):
        yield delayed(function)(*arguments, min(repeats, BATCH), 1000 + number)


def simulate_q(repeats: int, jobs: int) -> dict[tuple[str, int, int], tuple[float, float]]:
    rates = {}
    populations = {name: simulate_population(spread=spread) for name, spread in SPREADS.items()}
    print(f"{'spread':8} {'sd of Q':>8} {'seeds':>6} {'dialogues':>10} {'coverage':>9} {'size':>6}")
    for (name, population), seeds, dialogues in itertools.product(populations.items(), SEEDS, DIALOGUES):
        tasks = split(measure_q, repeats, population, seeds, dialogues)
        counts = np.array(Parallel(n_jobs=jobs)(tasks), float).sum(axis=0)
        rates[name, seeds, dialogues] = tuple(counts / repeats)
        covered, different = rates[name, seeds, dialogues]
        print(
            f"{name:8} {population.truth.std():8.3f} {seeds:6} {dialogues:10} {covered:9.3f} {different:6.3f}",
            flush=True,
        )
    missed = sum(Parallel(n_jobs=jobs)(split(measure_unequal, repeats, (populations["large"], populations["small"]))))
    print(f"large against small spread, 3 seeds, 195 dialogues: size {missed / repeats:.3f}")
    return rates


def simulate_bootstrap(repeats: int) -> None:
    """How often the interval of the bootstrap over seeds alone holds the mean that normal values were drawn with."""
    draw = np.random.default_rng(1000)
    for seeds in (2, 3, 5, 10):
        values = draw.normal(size=(repeats, seeds))
        means = np.stack([values[:, draw.integers(seeds, size=seeds)].mean(axis=1) for _ in range(1000)])
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        print(f"bootstrap over {seeds} seeds: coverage {((low <= 0) & (high >= 0)).mean():.3f}", flush=True)


def simulate_b(repeats: int, jobs: int) -> dict[tuple[float, int], float]:
    rates = {}
    print(f"{'prefers':>8} {'B':>6} {'decisions':>10} {'dialogues':>10} {'bias':>7} {'left':>7} {'coverage':>9}")
    for preference, (dialogues, turns) in itertools.product(PREFERENCES, B_CELLS):
        population = simulate_population("B", preference=preference, turns=turns, dialogues=1200, seeds=40)
        tasks = split(measure_b, repeats, population, dialogues)
        plain, corrected, covered = np.array(Parallel(n_jobs=jobs)(tasks)).sum(axis=0) / repeats
        rates[preference, dialogues * turns] = covered
        print(
            f"{preference:8} {population.truth.mean():6.3f} {dialogues * turns:10,} {dialogues:10} {plain:+7.3f} "
            f"{corrected:+7.3f} {covered:9.3f}",
            flush=True,
        )
    return rates


def simulate_judges(repeats: int, jobs: int) -> dict[tuple[float, float, bool, int], float]:
    """How often judges are believed, by their AUC, that of words, the kind of judge, and the number of dialogues."""
    rates = {}
    print(f"{'AUC':>5} {'words':>6} {'judge':>9} {'dialogues':>10} {'believed':>9}")
    for (judge, floor), pairwise, dialogues in itertools.product(JUDGES, (False, True), JUDGED_DIALOGUES):
        tasks = split(_count_believed, repeats, dialogues, judge, floor, pairwise)
        rates[judge, floor, pairwise, dialogues] = rate = sum(Parallel(n_jobs=jobs)(tasks)) / repeats
        kind = "pairwise" if pairwise else "rubric"
        print(f"{judge:5.2f} {floor:6.2f} {kind:>9} {dialogues:10} {rate:9.3f}", flush=True)
    return rates


def _count_believed(dialogues: int, judge: float, floor: float, pairwise: bool, repeats: int, seed: int) -> int:
    return count_believed(dialogues, judge, floor, repeats, seed, pairwise=pairwise)


def simulate_talks(repeats: int, jobs: int) -> dict[tuple[bool, bool, int, int], float]:
    """Coverage by measure, by what the clusters are, and by the numbers of cards and of talks with each."""
    rates = {}
    print(f"{'measure':8} {'clusters':>9} {'cards':>6} {'talks':>6} {'intervals':>9} {'coverage':>9} {'size':>6}")
    for success, apart, cards, talks in itertools.product((False, True), (False, True), CARDS, TALKS):
        if apart and talks == 1:
            continue
        tasks = split(_count_covered, repeats, cards, talks, success, apart)
        counts = np.array(Parallel(n_jobs=jobs)(tasks), float).sum(axis=0)
        known, covered, different = counts
        rates[success, apart, cards, talks] = covered / known
        names = f"{'success' if success else 'relief':8} {'talks' if apart else 'cards':>9}"
        shares = f"{known / repeats:9.3f} {covered / known:9.3f} {different / repeats:6.3f}"
        print(f"{names} {cards:6} {talks:6} {shares}", flush=True)
    return rates


def _count_covered(cards: int, talks: int, success: bool, apart: bool, repeats: int, seed: int) -> tuple[int, ...]:
    return count_covered(cards, talks, repeats, seed, success=success, apart=apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="of a cell of Q; of B a quarter of them")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=("bootstrap", "q", "b", "judges", "talks"), help="one of the simulations")
    options = parser.parse_args()
    started = time.perf_counter()
    print(f"{options.repeats:,} replications of a cell")
    if options.only in (None, "bootstrap"):
        simulate_bootstrap(options.repeats)
    if options.only in (None, "q"):
        covered, sizes = zip(*simulate_q(options.repeats, options.jobs).values(), strict=True)
        within = sum(0.93 <= rate <= 0.97 for rate in covered), sum(0.03 <= rate <= 0.07 for rate in sizes)
        print(f"cells within the goal: coverage {within[0]} of {len(covered)}, size {within[1]} of {len(covered)}")
        print(f"inference_coverage_q: {min(covered):.3f} to {max(covered):.3f} (goal .93 to .97)")
        print(f"inference_size_q: {min(sizes):.3f} to {max(sizes):.3f} (goal .03 to .07)")
    if options.only in (None, "b"):
        b = simulate_b(max(1, options.repeats // 4), options.jobs)
        large = [rate for (preference, count), rate in b.items() if count >= (1000 if preference == 3.0 else 500)]
        print(f"inference_coverage_b: {min(large):.3f} to {max(large):.3f} (goal .90 or more where it is given)")
    if options.only in (None, "judges"):
        judges = simulate_judges(options.repeats, options.jobs)
        believed = [rate for (judge, floor, *_), rate in judges.items() if judge == floor]
        print(f"inference_judge_size: {min(believed):.3f} to {max(believed):.3f} (goal <= .05)")
    if options.only in (None, "talks"):
        by_card = [rate for (_, apart, cards, _), rate in simulate_talks(options.repeats, options.jobs).items()
                   if not apart and cards >= 12]  # fmt: skip
        print(f"inference_coverage_talks: {min(by_card):.3f} to {max(by_card):.3f} (goal .92 to .97)")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
