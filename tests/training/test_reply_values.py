"""Values of a reward model take the place of a search's, for every reply that is compared."""

from __future__ import annotations

import numpy as np

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.training.reply_values import value_replies

OPENING, FIRST, SECOND = Reply("Hello!"), Reply("Sorry.", ("Others",), 0.25, 3), Reply("Why?", ("Question",))
BAD, WORSE = Reply("No.", ("Others",), -2.0, 1), Reply("Go!", ("Others",))
TALK = Dialogue(
    (
        Turn("supporter", OPENING), Turn("seeker", Reply("I am sad.")), Turn("supporter", FIRST, (BAD, WORSE)),
        Turn("seeker", Reply("It goes on.")), Turn("supporter", SECOND),
    ),
    "esconv",
)  # fmt: skip


def test_given_and_rejected_replies_are_valued_after_what_was_said():
    asked = []

    def values(talks):
        asked.extend(talks)
        return np.arange(len(talks)) / 10

    (valued, again) = value_replies([TALK, TALK], values)
    assert again == valued
    history = TALK.turns[:2]
    given = (*history, Turn("supporter", FIRST))
    later = (*given, TALK.turns[3], Turn("supporter", SECOND))
    assert asked == [given, *((*history, Turn("supporter", reply)) for reply in (BAD, WORSE)), later]
    found = [valued.turns[2].reply, *valued.turns[2].rejected, valued.turns[4].reply]
    assert [reply.value for reply in found] == [0.0, 0.1, 0.2, 0.3]
    assert [(reply.text, reply.visits) for reply in found] == [("Sorry.", 3), ("No.", 1), ("Go!", None), ("Why?", None)]
    assert valued.turns[0].reply == OPENING  # nothing is decided there
    assert (valued.tree_id, valued.turns[1]) == (TALK.tree_id, TALK.turns[1])
    assert value_replies([], values) == []
