"""ESC-Pro: the preference data of a search as split files of our own, in the published record forms, and its card.

Every number of the data card comes from the arguments. What is not known is called so; licences are never guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from esc_lab.config import Config
from esc_lab.config.search import PreferenceConfig
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.search.data_card import describe_player, render_card
from esc_lab.search.preferences import Preferences
from esc_lab.search.seeker_texts import HEADS, SeekerTexts
from esc_lab.search.session import SearchResult
from esc_lab.search.statistics import SearchStatistics
from esc_lab.statistics.intervals import LEVEL
from esc_lab.training.exports.data_card import size_category

log = logging.getLogger(__name__)


def write_esc_pro(
    directory: Path,
    dialogues: Sequence[Dialogue],
    splits: Mapping[str, Sequence[Dialogue]],
    seed_split: str,
    inventory: Inventory,
) -> None:
    """Write the dialogues as training split, with the validation and test split of their corpus beside them.

    The split that the seeds are of is not written: the dialogues hold them.
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
    """Refuse a search without pairs, in which nothing is preferred or no preferred reply has a rejected one.

    Raises:
        UserError: it says how near it was.
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
        fix = "a lower mcts.preferences.preferred_min or threshold=quantile, or more iterations with resume="
    if spent := result.stopped:
        raise UserError(f"{spent.message}; {problem}", where=spent.where, fix=spent.fix)
    raise UserError(problem, where="mcts.preferences", fix=fix)


def render_data_card(
    cfg: Config,
    result: SearchResult,
    preferences: Sequence[Preferences],
    statistics: SearchStatistics,
    code: str,
    texts: Mapping[str, SeekerTexts],
) -> str:
    """The card. Equal arguments give the same text, whatever the order of their mappings; `code` is its version.

    `texts` is what `compare_seekers` found.
    """
    constants = {
        key: value for key, value in asdict(cfg.mcts).items() if key not in ("preferences", "name", "in_flight")
    }
    lost = sum(node.lost for tree in result.trees for node in tree.nodes)
    failures = {**result.counts, "decisions without texts": lost, "unfinished trees": result.unfinished}
    if result.too_long:
        failures["of these set aside, as a conversation exceeds a model's context"] = result.too_long
    return render_card(
        "data_card.md.jinja",
        title=f"ESC-Pro from {cfg.data.name}",
        size=size_category(statistics.dialogues),
        seeds=cfg.data.name,
        seeds_licence=cfg.data.licence,
        inventory=cfg.inventory.name,
        roles=[describe_player(cfg, role, result.calls.models(role)) for role in sorted(result.calls.clients)],
        dates=result.calls.dates,
        prompts=result.prompts,
        code=code,
        constants=sorted({**constants, "seed": cfg.search.seed}.items()),
        rule=cfg.mcts.preferences,
        limits=_describe_limits(cfg.mcts.preferences, preferences),
        failures=sorted(failures.items()),
        judge=result.judge,
        level=f"{LEVEL:.0%}",
        statistics=statistics,
        seekers=[texts[name].row(name) for name in sorted(texts, reverse=True)],
        seeker_heads=HEADS,
    )


def _describe_limits(rule: PreferenceConfig, preferences: Sequence[Preferences]) -> list[tuple[object, ...]]:
    """Rows of how the limits of the trees differ; none where all have the same."""
    if rule.threshold == "absolute":
        return []
    limits = {
        "preferred, at least": [tree.preferred_min for tree in preferences],
        "rejected, at most": [tree.rejected_max for tree in preferences],
    }
    rows: list[tuple[object, ...]] = []
    for name, values in limits.items():
        known = [value for value in values if value is not None]
        ends = [f"{pick(known):.3f}" for pick in (min, median, max)] if known else ["-"] * 3
        rows.append((name, *ends, len(values) - len(known)))
    return rows
