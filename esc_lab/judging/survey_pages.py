"""What raters see of a survey, page by page; also as a project of Label Studio."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.judging.inputs import build_history
from esc_lab.judging.survey_key import SurveyKey

CHECK = "This is not a reply but a check that somebody is reading: please choose {value} on every scale of this page."


def build_pages(
    key: SurveyKey, questionnaire: str, dialogues: Mapping[str, Dialogue], inventory: Inventory
) -> list[dict[str, Any]]:
    """The pages of a questionnaire: `name`, `history`, `strategy`, `definition` and `replies`, as JSON types.

    Nothing in them says whose a reply is. The last reply of an attention check says what to choose.
    """
    definitions = {strategy.name: strategy.definition for strategy in inventory.strategies}
    pages = []
    for entry in key.questionnaires[questionnaire].values():
        item = key.items[entry.item]
        texts = [reply.text for reply in item.replies]
        texts = texts[::-1] if entry.swapped else texts
        if entry.check is not None:
            texts[-1] = CHECK.format(value=entry.check)
        history = build_history(dialogues[item.dialogue], item.turn)
        strategy = (item.strategy or "") if key.form.strategy else ""
        pages.append(
            {
                "name": entry.name,
                "history": [[turn.speaker, turn.reply.text] for turn in history],
                "strategy": strategy,
                "definition": definitions.get(strategy, ""),
                "replies": texts,
            }
        )
    return pages


def build_tasks(key: SurveyKey, pages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pages as the tasks that Label Studio imports."""
    return [
        {
            "data": {
                "survey": key.identity,
                "entry": page["name"],
                "history": [{"author": speaker, "text": text} for speaker, text in page["history"]],
                **({"strategy": f"Strategy: {page['strategy']}. {page['definition']}"} if key.form.strategy else {}),
                **{f"reply_{number}": text for number, text in enumerate(page["replies"], start=1)},
            }
        }
        for page in pages
    ]


def build_labelling_config(key: SurveyKey) -> str:
    """Label Studio's labelling configuration (XML): the talk, the strategy, the replies, a scale for each question."""
    view = Element("View")
    SubElement(view, "Header", value=key.form.instructions, size="4")
    talk = {"name": "history", "value": "$history", "layout": "dialogue", "nameKey": "author", "textKey": "text"}
    SubElement(view, "Paragraphs", talk)
    if key.form.strategy:
        SubElement(view, "Header", value="$strategy", size="4")
    row = SubElement(view, "View", style="display: flex; flex-wrap: wrap; gap: 1rem")
    for number, name in enumerate(("Reply A", "Reply B") if key.pairs else ("Reply",), start=1):
        column = SubElement(row, "View", style="flex: 1 1 20rem")
        SubElement(column, "Header", value=name, size="4")
        SubElement(column, "Text", name=f"reply_{number}_text", value=f"$reply_{number}")
    for question in key.form.questions:
        ends = f"{key.scale[0]}: {question['low']}; {key.scale[-1]}: {question['high']}"
        SubElement(view, "Header", value=f"{question['text']} ({ends})", size="4")
        scale = SubElement(
            view, "Choices", name=question["name"], toName="reply_1_text", choice="single-radio", showInline="true",
            required="true", requiredMessage=question["text"],
        )  # fmt: skip
        for value in key.scale:
            SubElement(scale, "Choice", value=str(value))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")
