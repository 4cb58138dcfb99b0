"""Replies as a judge of strategy adherence sees them: bare text that does not say which strategy it follows.

Whether a reply follows the strategy of its prompt is judged by a classifier of replies
(`esc_lab.scorers.classifier`), never by the model that wrote it. A reply that names its strategy would give the answer
away, in training as well as in judging, so both go through `bare_reply`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory, UnknownStrategyError, normalize_label

_ROLE = re.compile(r"^[\s*_#>]*(?:assistant|supporter)[\s*_]*:", re.IGNORECASE)
_STRATEGY_IS = r"(?i:\bstrategy[\s*_]*[:=-][\s*_]*)"
_BRACKETS = re.compile(rf"{_STRATEGY_IS}?[*_]*[(\[{{<]([^()\[\]{{}}<>]{{1,90}})[)\]}}>][*_]*")
_DASHES = "\u2013\u2014"
_HEADING = re.compile(rf"^{_STRATEGY_IS}?([^:.|?!{_DASHES}]{{1,90}}?)(?:\s*[:.|{_DASHES}]|\s-\s|$)")
_MARKS = "[\"'`*_\u2018\u2019\u201c\u201d]"  # quotation marks, also curly ones, and emphasis


@dataclass(frozen=True)
class LabelledReply:
    """The bare text of a supporter's reply, the index of its strategy in the inventory, and the dialogue's id."""

    text: str
    strategy: int
    dialogue: str


@dataclass
class ReplyReport:
    """What became of the supporter's utterances.

    Attributes:
        replies: labelled utterances with words left in them: the examples.
        stripped: those of them whose text lost a label or role prefix.
        empty: labelled utterances without a word, or with nothing but labels; dropped.
        unlabelled: utterances without a strategy; dropped.
    """

    replies: int = 0
    stripped: int = 0
    empty: int = 0
    unlabelled: int = 0


def labelled_replies(
    dialogues: Iterable[Dialogue], inventory: Inventory, *, last: bool = False
) -> tuple[list[LabelledReply], ReplyReport]:
    """The supporter's replies that carry a strategy, bare, with the first strategy that each carries.

    Rejected replies are left out: a search wrote them, often because they did not do well. A ValueError if a strategy
    is not in the inventory.

    Args:
        last: only replies that are the last turn of their dialogue.
    """
    examples, report = [], ReplyReport()
    for dialogue in dialogues:
        for turn in dialogue.turns[-1:] if last else dialogue.turns:
            if turn.speaker != "supporter":
                continue
            if not turn.reply.strategies:
                report.unlabelled += 1
            elif text := bare_reply(turn.reply.text, inventory):
                report.replies += 1
                report.stripped += text != _tidy(turn.reply.text)
                examples.append(LabelledReply(text, inventory.index(turn.reply.strategies[0]), dialogue.id))
            else:
                report.empty += 1
    return examples, report


def bare_reply(text: str, inventory: Inventory) -> str:
    """A reply without what names its speaker or its strategy. Applied twice it gives the same as applied once.

    Removed, as often as it occurs:

    - at the start of a line, `assistant:` or `supporter:` in any case;
    - anywhere, brackets that hold a known spelling of a strategy of the inventory and nothing else: `(Question)`,
      `[strategy: question]`, `(Question, Information)`; with or without a `Strategy:` before them;
    - anywhere, `Strategy: NAME`, with or without quotation marks or asterisks around the name;
    - anywhere, a name spelled as in the inventory inside quotation marks, asterisks or underscores: `"Question"`;
    - a known spelling that makes up the start of a line, up to a colon, full stop, bar, dash or the line's end:
      `Question: ...`, `Self-disclosure - ...`;
    - a name spelled as in the inventory at the start of a line if the next word begins with a capital letter:
      `Question What happened?`.

    Names such as Question, Information or Others are ordinary words too. Inside a sentence they stay, also at its
    beginning ("Information is hard to come by"): they are how people talk, and removing them would take words from the
    replies of one strategy only. The last rule costs the rare sentence that looks like a label its first word ("Others
    I know"). Punctuation after a removed label goes with it. White space is tidied: single blanks, no empty lines.

    >>> from esc_lab.data.strategies import load_inventory
    >>> bare_reply("Supporter: (Question) What is the question that worries you?", load_inventory("esconv"))
    'What is the question that worries you?'
    """
    text = _tidy(text)
    while True:
        shorter = _tidy("\n".join(_without_labels(line, inventory) for line in text.split("\n")))
        if shorter == text:
            return text
        text = shorter


def _tidy(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _without_labels(line: str, inventory: Inventory) -> str:
    """One line with one layer of labels less, and without the punctuation that a label at its start left behind."""
    before = line
    line = _ROLE.sub("", line)
    line = _BRACKETS.sub(lambda match: " " if _names_strategies(match[1], inventory) else match[0], line)
    for pattern in _name_patterns(inventory):
        line = pattern.sub(" ", line)
    heading = _HEADING.match(line)
    if heading and _names_strategies(heading[1], inventory):
        line = line[heading.end() :]
    return line if line == before else line.lstrip(f" *_:;,.|-{_DASHES}")


@cache
def _name_patterns(inventory: Inventory) -> tuple[re.Pattern[str], ...]:
    """`Strategy: NAME`, NAME between marks, NAME as the first words of a line."""
    longest_first = sorted(inventory.names, key=len, reverse=True)
    exact = "|".join(re.escape(name) for name in longest_first)
    loose = "|".join(r"[\W_]+".join(re.findall(r"\w+", name)) for name in longest_first)
    return (
        re.compile(rf"{_STRATEGY_IS}{_MARKS}*(?i:{loose})\b{_MARKS}*"),
        re.compile(rf"(?i:\bstrategy\s+)?{_MARKS}+(?:{exact}){_MARKS}+"),
        re.compile(rf"^(?:{exact})\s+(?={_MARKS}?[A-Z])"),
    )


def _names_strategies(label: str, inventory: Inventory) -> bool:
    """Whether a label is one or several strategies of the inventory, `strategy:` before them or not."""
    label = re.sub(rf"^\W*{_STRATEGY_IS}", "", label)
    try:
        for part in re.split(r"[,/;|+]", label):
            # No known spelling has more words; this spares most sentences the look-up.
            if len(part.split()) > 6:
                return False
            normalize_label(part, inventory)
    except UnknownStrategyError:
        return False
    return True
