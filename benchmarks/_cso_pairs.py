"""Preference pairs of the shape of ESC-Pro, from the sample corpus: as dialogues, and as TRL's conversational pairs."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Inventory, load_inventory
from esc_lab.prompts import build_prompt, load_layout, reply_content
from esc_lab.tokens import ChatEncoder

Chat = list[dict[str, str]]

# The sample corpus has ESConv's labels. For timings any one-to-one reading of them as CSO's does.
_CSO_NAMES = {
    "Question": "Empathetic Statements",
    "Restatement or Paraphrasing": "Avoid Judgment and Criticism",
    "Reflection of feelings": "Emotional Validation",
    "Self-disclosure": "Reframe Negative Thoughts",
    "Affirmation and Reassurance": "Affirmation",
    "Providing Suggestions": "Collaborative Planning",
    "Information": "Share Information",
    "Others": "Provide Different Perspectives",
}


@dataclass(frozen=True)
class Pair:
    """A preference pair as TRL's conversational form: the prompt's messages and one assistant message each."""

    prompt: Chat
    chosen: Chat
    rejected: Chat


def esc_pro_shaped(turns: int = 8, rejected: int = 3, seed: int = 0) -> Dialogue:
    """A dialogue of the sample corpus with `turns` decisions and `rejected` rejected replies at each.

    Where the corpus has fewer rejected replies, replies of other dialogues fill up. All replies are different, and
    those of one turn have different strategies as far as there are enough.

    Raises:
        ValueError: no dialogue has so many turns.
    """
    corpus = [dialogue for dialogue in read_dialogues(sample_path()) if dialogue.turns[0].speaker == "seeker"]
    long_enough = [dialogue for dialogue in corpus if len(dialogue.turns) >= 2 * turns]
    if not long_enough:
        raise ValueError(f"no dialogue with {turns} turns of the supporter in the sample corpus")
    draw = random.Random(seed)
    chosen = draw.choice(long_enough)
    elsewhere = [turn for other in corpus if other is not chosen for turn in other.turns]
    pool = [turn.reply for turn in elsewhere if turn.speaker == "supporter"]
    draw.shuffle(pool)
    made = []
    for turn in chosen.turns[: 2 * turns]:
        if turn.speaker == "supporter":
            found = {turn.reply.strategies[0]: turn.reply}
            for reply in (*turn.rejected, *pool):
                found.setdefault(reply.strategies[0], reply)
            distinct = list(found.values())
            replies = [*distinct, *(reply for reply in pool if reply not in distinct)][: rejected + 1]
            pool = [reply for reply in pool if reply not in replies]
            first, *rest = (Reply(reply.text, (_CSO_NAMES[reply.strategies[0]],)) for reply in replies)
            turn = Turn("supporter", first, tuple(rest))
        made.append(turn)
    return Dialogue(tuple(made), "cso", situation=chosen.situation, problem=chosen.problem)


def lone_pair(encoder: ChatEncoder, context_tokens: int = 400, seed: int = 0) -> Dialogue:
    """A dialogue with one rejected reply in all, at its last decision, after about `context_tokens` of `cso` prompt."""
    whole = esc_pro_shaped(rejected=1, seed=seed)
    off = []
    for turn in whole.decisions():
        prompt = build_prompt(load_layout("cso"), load_inventory("cso"), whole, turn, history_labels=True)
        tokens = len(encoder.encode_prompt(encoder.adapt(prompt)).input_ids)
        off.append((abs(tokens - context_tokens), turn))
    *context, last = whole.turns[: min(off)[1] + 1]
    return replace(whole, turns=(*(replace(turn, rejected=()) for turn in context), last), tree_id="")


def pair_texts(encoder: ChatEncoder, inventory: Inventory, dialogue: Dialogue) -> list[Pair]:
    """All pairs of a dialogue under the `cso` template, turn by turn, the rejected replies in their order."""
    template = load_layout("cso")
    pairs = []
    for number in dialogue.decisions():
        turn = dialogue.turns[number]
        prompt = encoder.adapt(build_prompt(template, inventory, dialogue, number, history_labels=True))
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        chosen, *rest = (
            [{"role": "assistant", "content": reply_content(template, reply.text, reply.strategies)}]
            for reply in (turn.reply, *turn.rejected)
        )
        pairs += [Pair(messages, chosen, rejected) for rejected in rest]
    return pairs
