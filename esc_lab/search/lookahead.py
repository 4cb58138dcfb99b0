"""What the tree will probably be when an iteration under way has ended: its outcome so far, with an expected reward."""

from __future__ import annotations

from dataclasses import replace

from esc_lab.search.iteration import Outcome, add_outcome
from esc_lab.search.tree import WORST_REWARD, Node, Tree


def expect_tree(tree: Tree, number: int, outcome: Outcome) -> Tree:
    """A copy of the tree with what is known of the iteration from a leaf, and the reward that is expected of it.

    A leaf of which it is not known yet how the conversation goes on there cannot be searched on: it is marked as lost.
    The expected reward is the mean of the scores so far; without any, the mean reward of the leaf, or of the next node
    above it that has one; 0 where nothing was judged.
    """
    expected = Tree(tree.start, list(tree.nodes), tree.iterations)
    for step in (0, *tree.path(number)):  # what changes
        expected.nodes[step] = Node(**vars(tree.nodes[step]))
    reward = outcome.reward
    if reward is None:
        reward = _mean_reward(tree, number)
    ended = outcome.exchange.seeker.ended if outcome.exchange else tree.nodes[number].ended
    score: list[float | None] = [reward - WORST_REWARD]
    own_scores = outcome.own_scores or (score if ended else [])
    scores = outcome.scores or (score if outcome.priors else [])
    rewarded = add_outcome(expected, number, replace(outcome, own_scores=own_scores, scores=scores))
    expected.nodes[rewarded].lost = rewarded == number and not ended
    expected.back_up(rewarded, reward)
    return expected


def _mean_reward(tree: Tree, number: int) -> float:
    for step in (*reversed(tree.path(number)), 0):
        _, value = tree.nodes[step].judgement
        if value is not None:
            return value
    return 0.0
