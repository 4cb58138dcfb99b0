"""ESC-Pro: the preference data of a search as split files in our own format, and in the published record forms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from esc_lab.config.search import PreferenceConfig
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.search.session import SearchResult
from esc_lab.search.statistics import SearchStatistics

log = logging.getLogger(__name__)


def write_esc_pro(
    directory: Path,
    dialogues: Sequence[Dialogue],
    splits: Mapping[str, Sequence[Dialogue]],
    seed_split: str,
    inventory: Inventory,
) -> None:
    """Write the dialogues as training split, with the validation and test split of their corpus beside them.

    Args:
        seed_split: split that the seeds are of; the dialogues hold them, so it is not written.
    """
    write_dialogues(dialogues, directory / "train.jsonl", inventory=inventory)
    for name, file in (("val", "valid"), ("test", "test")):
        if name == seed_split:
            log.warning("the seeds are those of %s, so esc_pro/ has no %s.jsonl", name, file)
        elif splits.get(name):
            write_dialogues(splits[name], directory / f"{file}.jsonl", inventory=inventory)
        else:
            log.warning("the split %s has no dialogues, so esc_pro/ has no %s.jsonl", name, file)
    for form in ("dialogues", "pairs", "kto"):
        write_dialogues(dialogues, directory / f"{form}.json", f"esc_pro_{form}")


def require_pairs(result: SearchResult, rule: PreferenceConfig, statistics: SearchStatistics) -> None:
    """Refuse a search without pairs.

    Raises:
        UserError: nothing is preferred in any tree, or no preferred reply has a rejected one; it says how near it was.
    """
    if statistics.pairs:
        return
    if statistics.dialogues:
        problem = "no preferred reply has a rejected one beside it"
        fix = "more iterations, a higher mcts.preferences.rejected_max, or mcts.preferences.extend_rejected=true"
    else:
        values = [node.value for tree in result.trees for node in tree.nodes if node.ended]
        nearest = f"the best of {len(values)} has Q {max(values):.2f}" if values else "no conversation has ended"
        limit = f"{rule.threshold} {rule.preferred_min:g}, visits {rule.preferred_visits}"
        problem = f"nothing is preferred in any tree ({limit}): {nearest}"
        fix = (
            "a lower mcts.preferences.preferred_min, threshold=quantile, or more iterations; resume= goes on from here"
        )
    spent = result.stopped
    if spent:
        raise UserError(f"{spent.message}; {problem}", where=spent.where, fix=spent.fix)
    raise UserError(problem, where="mcts.preferences", fix=fix)
