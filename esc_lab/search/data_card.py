"""The data card of a preference data set that a search made: Markdown with the head of a Hugging Face dataset card.

Every number in it comes from the arguments. What is not known is called so; licences are never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from esc_lab.config import Config
from esc_lab.config.search import PreferenceConfig
from esc_lab.search.judge_check import TRUSTED_AUC
from esc_lab.search.preferences import Preferences
from esc_lab.search.session import SearchResult
from esc_lab.search.statistics import SearchStatistics
from esc_lab.statistics.intervals import LEVEL

NOT_STATED = "not stated"
# The hub's names for how many records there are: the first number that is too many, and the name.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "n>1M"


def render_data_card(
    cfg: Config, result: SearchResult, preferences: Sequence[Preferences], statistics: SearchStatistics, code: str
) -> str:
    """The card. Equal arguments give the same text, whatever the order of their mappings.

    Args:
        preferences: of each tree.
        code: version of the code.
    """
    constants = {key: value for key, value in asdict(cfg.mcts).items() if key not in ("preferences", "name")}
    lost = sum(node.lost for tree in result.trees for node in tree.nodes)
    failures = {**result.counts, "decisions without texts": lost, "unfinished trees": result.unfinished}
    # Markdown, which no browser runs: nothing is escaped but what would break a table.
    environment = Environment(
        loader=PackageLoader("esc_lab.search"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("data_card.md.jinja").render(
        title=f"ESC-Pro from {cfg.data.name}",
        size=next((name for limit, name in _SIZES if statistics.dialogues < limit), _LARGEST),
        seeds=cfg.data.name,
        seeds_licence=cfg.data.licence,
        inventory=cfg.inventory.name,
        roles=[_describe_role(cfg, role, result.calls.models(role)) for role in sorted(result.calls.clients)],
        dates=result.calls.dates,
        prompts=result.prompts,
        code=code,
        constants=sorted({**constants, "seed": cfg.search.seed}.items()),
        rule=cfg.mcts.preferences,
        limits=_describe_limits(cfg.mcts.preferences, preferences),
        failures=sorted(failures.items()),
        judge=result.judge,
        level=f"{LEVEL:.0%}",
        trusted_auc=TRUSTED_AUC,
        statistics=statistics,
        json=json.dumps,
        table=_table,
    )


def _describe_role(cfg: Config, role: str, models: Sequence[str]) -> tuple[str, ...]:
    """Who played a role: its row of the table."""
    played = getattr(cfg.llm, role)
    sampling: Mapping[str, Any] = {name: getattr(played, name) for name in ("max_tokens", "temperature", "top_p")}
    local = cfg.llm.local.model.licence if played.client == "local" and played.model is None else None
    return (
        role,
        played.client,
        ", ".join(models) or NOT_STATED,
        ", ".join(f"{name} {value}" for name, value in sampling.items()),
        played.licence or local or NOT_STATED,
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


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
