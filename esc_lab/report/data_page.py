"""A look at a corpus: its tables for the terminal and one page, with prompts as a model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.data.corpora import ReadReport
from esc_lab.data.corpora.reading import AMONG_UNLABELLED
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.report.page import render_page
from esc_lab.terminal import find_numbers
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.lengths import Lengths

# What a count of reading means, and what would have it otherwise.
REASON_NOTES = {
    "turns": "messages, those in a row of one side merged (data.merge)",
    "supporter_turns": "of these by supporters",
    "unlabelled_supporter_turns": "no strategy: context, but not trained on",
    "labels_replaced": "read as data.labels says",
    "unknown_labels_dropped": "the inventory does not know them; a training refuses: data.labels, or data.unknown=drop",
    "labels_mapped_away": "no counterpart in the modelled inventory",
    "empty_turns_dropped": "no text",
    "system_messages_dropped": "of neither side (data.roles)",
    "rows_repeated": "the same message once more",
    "seeker_labels_ignored": "strategies are the supporter's",
    "duplicate_pairs": "read before",
    "equal_pairs_dropped": "both replies are the same",
    "unpaired_rejected": "no preferred reply to the same messages; only KTO uses them",
    "keys_ignored": "no place for them in a dialogue",
    "survey_answers_unreadable": "no numbers from 1 to 5; kept in meta",
    "trees_in_two_splits": "a training refuses: data.split=proportion, or data.overlap=allow",
    "texts_stripped": "white space around the text",
}
# What the columns are.
SPLIT_NOTE = (
    "Trees: dialogues with the same beginning count as one. Turns: after those in a row were merged (data.merge). "
    "Supporter's: turns of supporters. Trained on: of these with a strategy, and after a seeker. Pairs: rejected "
    "replies beside the given one. Of them unlabelled: those whose given reply has no strategy."
)
LABEL_NOTE = (
    "As it is spelt: the label in the files. How often: on replies, rejected ones too. Read as: the strategy of the "
    "corpus' own list that it stands for. "
    "Strategy of INVENTORY: that of the list which is modelled here (inventory=INVENTORY)."
)
STRATEGY_NOTE = "First strategy of a reply: some have several. Below each split, how many of its replies have it."
LENGTH_NOTE = (
    "Median, 95 %: half of them, 95 of a hundred have at most so many. Shortened: replies that see a history without "
    "its oldest turns, to fit. Too long: replies that do not fit at all; a training refuses them unless "
    "data.too_long=drop."
)


@dataclass(frozen=True)
class Table:
    """A table, all its cells texts; the first column names the row."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    marked: int = 0  # so many of the first rows a training would refuse

    @property
    def numbers(self) -> list[bool]:
        """Of each column whether it holds numbers."""
        return find_numbers(self.rows, len(self.heads))


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt and its reply as the model reads them."""

    where: str
    strategy: str
    tokens: str
    prompt: str
    reply: str


@dataclass(frozen=True)
class DataLook:
    """What there is to see of a corpus."""

    facts: Mapping[str, str]
    tables: Sequence[Table]
    prompts: Sequence[ShownPrompt]


READ_HEADS = ("what", "how many", "why")


def describe_reading(counts: Mapping[str, int]) -> list[list[str]]:
    """A row below `READ_HEADS` for each count of reading that is not 0."""
    notes = {**REASON_NOTES}
    if counts.get("unknown_labels_dropped"):
        notes["unlabelled_supporter_turns"] += f"; {AMONG_UNLABELLED}"
    return [[name.replace("_", " "), str(count), notes.get(name, "")] for name, count in counts.items() if count]


def render_data_page(title: str, look: DataLook) -> str:
    """The page: tables, then prompts to open; no network."""
    return render_page(
        "data.html.jinja", title, {}, styles=["page.css", "data_page.css"], scripts=["page.js", "wide_tables.js"],
        facts=look.facts, tables=look.tables, prompts=look.prompts,
    )  # fmt: skip


def tabulate_splits(splits: Mapping[str, Sequence[Dialogue]], replies: Mapping[str, Lengths]) -> Table:
    """Sizes of each split."""
    rows = []
    for name, dialogues in splits.items():
        supporter = [turn for dialogue in dialogues for turn in dialogue.turns if turn.speaker == "supporter"]
        paired = [turn for turn in supporter if turn.rejected]
        counts = (
            len(dialogues), len({dialogue.tree_id for dialogue in dialogues}),
            sum(len(dialogue.turns) for dialogue in dialogues), len(supporter), len(replies[name].replies),
            sum(len(turn.rejected) for turn in paired),
            sum(len(turn.rejected) for turn in paired if not turn.reply.strategies),
        )  # fmt: skip
        rows.append([name, *map(str, counts)])
    heads = ("split", "dialogues", "trees", "turns", "supporter's", "trained on", "pairs", "of them unlabelled")
    return Table("Splits", heads, rows, [SPLIT_NOTE])


def tabulate_reading(report: ReadReport) -> Table:
    """What reading dropped or changed, and why."""
    rows = describe_reading(report.changes())
    return Table("What reading dropped or changed", READ_HEADS, rows or [["nothing", "0", ""]])


def tabulate_labels(report: ReadReport, inventory: Inventory, most: int) -> Table:
    """Labels as they are spelt, what they are read as, and what becomes of them; unknown ones come first."""
    rows = []
    counts = sorted(report.labels.most_common(), key=lambda entry: entry[0][1] != "")
    for (label, own, name), count in counts[:most]:
        read = {None: "no strategy", "": "not known"}.get(own, own or "")
        rows.append([label, str(count), read, name or "none"])
    unknown = sum(own == "" for (_, own, _), _ in counts[:most])
    more = len(report.labels) - most
    note = f" {more} more spellings are not shown (look.labels)." if more > 0 else ""
    heads = ("as it is spelt", "how often", "read as", f"strategy of {inventory.name}")
    notes = [LABEL_NOTE.replace("INVENTORY", inventory.name) + note]
    if report.refusal:
        notes.append(f"What a training says of those that are not known: {report.refusal}")
    return Table("Labels", heads, rows or [["no labels", "0", "", ""]], notes, unknown)


def tabulate_strategies(splits: Mapping[str, Sequence[Dialogue]], inventory: Inventory) -> Table:
    """How many replies of each split have each strategy as their first."""
    counts = {
        name: Counter(turn.reply.strategies[0] for each in dialogues for turn in each.turns if turn.reply.strategies)
        for name, dialogues in splits.items()
    }
    rows = [[strategy, *(str(own[strategy]) for own in counts.values())] for strategy in inventory.names]
    return Table("Strategies", ("first strategy of a reply", *splits), rows, [STRATEGY_NOTE])


def tabulate_lengths(lengths: Mapping[str, Lengths], model: str, row_tokens: int) -> Table:
    """Tokens of prompts and replies, and what does not fit."""
    rows = [
        [name, *_spread(own.prompts), *_spread(own.replies), str(own.shortened), str(own.too_long)]
        for name, own in lengths.items()
    ]
    heads = ("split", "prompt: median", "95 %", "longest", "reply: median", "95 %", "longest", "shortened", "too long")
    note = f"Tokens of {model}; prompt and reply may have {row_tokens} together (data.row_tokens). {LENGTH_NOTE}"
    return Table("Lengths", heads, rows, [note])


def _spread(tokens: IntArray) -> list[str]:
    if not len(tokens):
        return ["-", "-", "-"]
    return [f"{value:.0f}" for value in (np.median(tokens), np.quantile(tokens, 0.95), tokens.max())]
