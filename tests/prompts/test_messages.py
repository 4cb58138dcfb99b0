"""Talks as Python code gives them."""

from __future__ import annotations

import pytest

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.prompts.messages import build_talk
from tests.conftest import INVENTORIES

INVENTORY = INVENTORIES["esconv"]


def test_talks():
    seeker, supporter = Turn("seeker", Reply("My job.")), Turn("supporter", Reply("Since when?", ("Question",)))
    whole = Dialogue((seeker, supporter, seeker), "esconv", situation="No work.")
    assert build_talk(" My job. ", INVENTORY).turns == (seeker,)
    messages = [{"role": "user", "content": "My job."}, {"role": "assistant", "content": "(question) Since when?"}]
    assert build_talk([*messages, messages[0]], INVENTORY).turns == whole.turns
    assert build_talk([seeker, supporter, seeker], INVENTORY).turns == whole.turns
    assert build_talk(whole, INVENTORY) == whole
    first = build_talk(whole, INVENTORY, turn=1)
    assert (first.turns, first.situation) == ((seeker,), "No work.")


@pytest.mark.parametrize(
    "talk", [[], "", [{"role": "system", "content": "Be kind."}], [3], [{"role": "user", "content": None}],
             [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
)  # fmt: skip
def test_what_is_no_talk(talk):
    with pytest.raises(UserError, match=r"^talk.* Fix: "):
        build_talk(talk, INVENTORY)
