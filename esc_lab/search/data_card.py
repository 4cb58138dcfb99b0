"""The data card of a preference data set that a search made: Markdown with the head of a Hugging Face dataset card.

Every number in it comes from the arguments. What is not known is called so; licences are never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from esc_lab.search.judge_check import LEVEL, TRUSTED_AUC, JudgeCheck
from esc_lab.search.preferences import PreferenceRule
from esc_lab.search.statistics import SearchStatistics

NOT_STATED = "not stated"
# The hub's names for how many records there are: the first number that is too many, and the name.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MORE = "n>1M"


@dataclass(frozen=True)
class RoleSource:
    """Who played a role of the search.

    Attributes:
        client: kind of the client, e.g. `openai`.
        models: names of the models as the endpoint returned them.
        sampling: sampling parameters.
        licence: of the model; empty if it is not known.
    """

    client: str
    models: Sequence[str]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where the data come from.

    Attributes:
        roles: role -> who played it.
        first_call, last_call: dates of the calls; empty if they are not known.
        prompts: hash of the prompts.
        search: constants of the search.
        rule: what was preferred.
        limits: for each tree the limits as values (`Preferences.preferred_min`, `rejected_max`); shown where they are
            quantiles.
        inventory: name of the strategies' inventory.
        seeds, seeds_licence: name of the corpus of the seed dialogues, and its licence; empty if it is not known.
        code: version of the code.
        failures: what could not be had, by kind: judgements that are missing, answers that could not be parsed, lost
            decisions and the like.
    """

    roles: Mapping[str, RoleSource]
    first_call: str
    last_call: str
    prompts: str
    search: Mapping[str, Any]
    rule: PreferenceRule
    limits: Sequence[tuple[float | None, float | None]]
    inventory: str
    seeds: str
    seeds_licence: str
    code: str
    failures: Mapping[str, int]


def data_card(
    title: str,
    statistics: SearchStatistics,
    made: Provenance,
    judge: JudgeCheck | None = None,
    *,
    language: str = "",
    licence: str = "",
) -> str:
    """The card. Equal arguments give the same text, whatever the order of their mappings.

    Args:
        judge: what the check of the judge found; None if there was none.
        language: code of the dialogues' language, e.g. `en`; empty if it is not known.
        licence: of the data set, as the hub names it, e.g. `cc-by-nc-4.0`; empty if it is not known.
    """
    sections = (
        _head(title, statistics, language, licence),
        f"# {title}",
        _what(made, language, licence),
        "## How it was made",
        _sources(made),
        "### Search",
        _table(("setting", "value"), sorted(made.search.items())),
        "### Which replies are preferred and which rejected",
        _rule(made.rule),
        _limits(made),
        "### What could not be had",
        _failures(made.failures),
        "### Check of the judge",
        _judge(judge),
        "## What it holds",
        _table(("", "count or value"), statistics.table()),
        _table(("strategy", "preferred replies", "rejected replies"), statistics.strategy_table()),
        _USE,
        _limitations(statistics),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(title: str, statistics: SearchStatistics, language: str, licence: str) -> str:
    size = next((name for limit, name in _SIZES if statistics.dialogues < limit), _MORE)
    fields = {
        "pretty_name": title,
        "license": "unknown" if licence in ("", NOT_STATED) else licence,
        **({"language": [language]} if language else {}),
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": ["emotional-support", "preference", "synthetic"],
    }
    # JSON is YAML, and its quotes keep a language such as "no" a text.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _what(made: Provenance, language: str, licence: str) -> str:
    text = (
        "Preference data for emotional support conversation, made by language models. A strategy search (Monte Carlo "
        "tree search over support strategies, after *Chain of Strategy Optimization*) continued seed dialogues in many "
        "ways, and a judge scored the replies. Each dialogue is one way through a search tree. Its supporter turns "
        "hold the preferred reply and the replies that were rejected in its place, with their strategies, and with "
        "value and visits where they were judged."
    )
    facts = [
        f"- Licence of this data set: {licence or NOT_STATED}",
        f"- Seed dialogues: {made.seeds or NOT_STATED}; their licence: {made.seeds_licence or NOT_STATED}",
        f"- Language: {language or NOT_STATED}",
        f"- Strategies: inventory `{made.inventory}`",
    ]
    return f"{text}\n\n{_lines(facts)}"


def _sources(made: Provenance) -> str:
    rows = [
        (
            role,
            source.client,
            ", ".join(source.models) or NOT_STATED,
            ", ".join(f"{name} {value}" for name, value in sorted(source.sampling.items())) or NOT_STATED,
            source.licence or NOT_STATED,
        )
        for role, source in sorted(made.roles.items())
    ]
    columns = ("role", "client", "model, as the endpoint named it", "sampling", "licence of the model")
    facts = [
        f"- First call: {made.first_call or NOT_STATED}; last call: {made.last_call or NOT_STATED}",
        f"- Hash of the prompts: `{made.prompts}`",
        f"- Code: esc-lab {made.code}",
    ]
    return f"{_table(columns, rows)}\n\n{_lines(facts)}"


def _rule(rule: PreferenceRule) -> str:
    name = {"max_q": "mean value Q", "max_n": "number of visits N"}[rule.value]
    if rule.threshold == "absolute":
        least, most = f"at least {rule.preferred_min}", f"at most {rule.rejected_max}"
    else:
        least = f"at least the {rule.preferred_min} quantile of the ended leaves that the search found in its tree"
        most = f"at most the {rule.rejected_max} quantile of its tree's judged decisions"
    text = (
        f"A leaf where the talk ended is preferred if its {name} is {least}, and if it has {rule.preferred_visits} or "
        "more visits. All decisions on the way to it are preferred with it. Rejected are the siblings of a preferred "
        f"reply whose {name} is {most}, which were judged {rule.rejected_visits} or more times, and which are not "
        "preferred themselves."
    )
    if rule.threshold == "quantile":
        text += " The end of a seed dialogue is preferred in any case."
    if rule.lower:
        text += " What was judged of a rejected reply is lower than what was judged of the preferred one."
    return text


def _limits(made: Provenance) -> str:
    """How the limits of the trees differ."""
    if made.rule.threshold == "absolute" or not made.limits:
        return ""
    rows = []
    for name, limits in zip(("preferred, at least", "rejected, at most"), zip(*made.limits, strict=True), strict=True):
        known = [limit for limit in limits if limit is not None]
        ends = [f"{pick(known):.3f}" for pick in (min, median, max)] if known else ["-"] * 3
        rows.append((name, *ends, len(limits) - len(known)))
    return _table(("limit over trees", "lowest", "median", "highest", "trees without"), rows)


def _failures(failures: Mapping[str, int]) -> str:
    if not failures:
        return "No counts were given."
    note = "A missing judgement is left out of the means, and strategies without ratings count as equally probable."
    return f"{_table(('what', 'count'), sorted(failures.items()))}\n\n{note}"


def _judge(check: JudgeCheck | None) -> str:
    if check is None:
        return "The judge was not checked against gold replies. Do not rely on its scores before that is done."
    text = (
        "Between the gold replies of seed dialogues and replies taken from other dialogues, the judge's scores have an "
        f"AUC of {check.auc:.3f} ({LEVEL:.0%} interval {check.low:.3f} to {check.high:.3f}; {check.pairs} contexts of "
        f"{check.dialogues} dialogues). A judge that looks at the reply alone has an AUC of one half."
    )
    if not check.trusted:
        text += f" **This is below {TRUSTED_AUC}: the judge hardly tells a fitting reply from a foreign one.**"
    return text


_USE = (
    "## Intended use\n\n"
    "Research on how supporters choose strategies: preference optimisation, and the study of preference bias.\n\n"
    "**Not for people in crisis.** Language models wrote these replies, apart from those of the seeds, and a language "
    "model judged them. Nothing in how they are made has a person with clinical training check them, and some of them "
    "may harm. Do not put a model that was trained on them in front of people in distress without professional "
    "supervision, without a tested way to notice danger to life, and without handing such talks over to emergency "
    "services or a crisis line. It is no substitute for professional help."
)


def _limitations(statistics: SearchStatistics) -> str:
    limits = [
        "- Values are the opinion of a judge model, averaged over simulated continuations. They do not measure help "
        "that anybody received.",
        "- Outside the seed dialogues the seeker's words are a model's, too. People in distress may talk and react "
        "otherwise.",
        f"- Of the {statistics.preferred} preferred replies {statistics.preferred_seed} are the seeds'. The search "
        f"takes those for good from the start; what it found itself are the other {statistics.preferred_found}.",
        f"- Of the {statistics.pairs} pairs {statistics.pairs_inverted} prefer the reply with the lower value, and "
        f"{statistics.pairs_unjudged} hold a reply that nobody judged.",
        "- The terms of the seed dialogues and of the models above may bind whoever uses or passes on these data.",
    ]
    return f"## Limits\n\n{_lines(limits)}"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return _lines([f"| {' | '.join(_cell(value) for value in line)} |" for line in lines])


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
