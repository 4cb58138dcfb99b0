"""What keys affect, as their declarations and those of their sections say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from esc_lab.config import STAGES, keys
from esc_lab.config.item import LOOKS, SPEED, Effect, item, keys_of, looks, results, section


@dataclass
class Inner:
    plain: int = item(1, "as its section")
    own: int = item(1, "of fewer stages", affects=results("sft", "search"))
    card: str = item("", "on cards", affects=looks("search"))
    fast: int = item(1, "only speed", affects=SPEED)


@dataclass
class Outer:
    model: Inner = section(Inner, results("sft", "evaluate"))
    player: Inner = section(Inner, results("search"))
    tag: str = item("", "a tag", affects=LOOKS)


def test_a_key_affects_at_most_what_its_section_does():
    found = {key.name: key.affects for key in keys_of(Outer)}
    assert found == {
        "model.plain": results("sft", "evaluate"),
        "model.own": results("sft"),
        "model.card": Effect("looks"),
        "model.fast": SPEED,
        "player.plain": results("search"),
        "player.own": results("search"),
        "player.card": looks("search"),
        "player.fast": SPEED,
        "tag": LOOKS,
    }


def test_every_key_declares_what_it_affects():
    with pytest.raises(TypeError, match="plain: declare what it affects"):
        list(keys_of(Inner))
    for key in list(keys()):
        assert key.affects.stages <= set(STAGES), key.name
        assert key.affects.stages or key.affects.kind != "result", f"{key.name} affects a result, but of no stage"
