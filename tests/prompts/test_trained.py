"""How trained roles are asked: as the run that trained them says, and only where it is the right one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from esc_lab.config.prompt import PromptConfig, TemplateConfig, collect_seeker_words, find_layout
from esc_lab.data.dialogue import merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.prompts import SeekerProfile, load_layout
from esc_lab.prompts.trained import (
    SeekerPrompts,
    SupporterPrompts,
    check_side,
    read_trained_prompts,
    restore_trained_prompts,
    warn_of_training,
)
from esc_lab.tokens.examples import build_examples
from tests.conftest import INVENTORIES

ESCONV = INVENTORIES["esconv"]
WORDS = collect_seeker_words(PromptConfig(), {})


def write_run(directory: Path, **changes) -> Path:
    """A training's configuration, as far as it matters here."""
    template = TemplateConfig("cso", layout={**find_layout("cso"), "baselines": {}})
    config = {
        "stage": "sft",
        "data": {"side": "supporter"},
        "inventory": {"name": "esconv"},
        "prompt": {"train": asdict(template), "seeker": {}},
    } | changes
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


def seeker_run(directory: Path) -> Path:
    return write_run(directory, data={"side": "seeker"}, prompt={"train": {}, "seeker": WORDS})


def test_an_evaluation_unlike_the_training_is_warned_of(tmp_path, caplog):
    run = write_run(tmp_path / "run")
    warn_of_training(run / "adapter", ESCONV, "cso")
    warn_of_training(seeker_run(tmp_path / "seeker"), INVENTORIES["extes_sra"], "standard")
    warn_of_training(tmp_path / "gone", ESCONV, "standard")
    assert not caplog.text
    warn_of_training(run, ESCONV, "standard")
    (line,) = caplog.messages
    assert f"{run} was trained with the template cso, not standard" in line
    caplog.clear()
    warn_of_training(run, INVENTORIES["extes_sra"], "c1_hf")
    (line,) = caplog.messages
    assert "the strategies of esconv, not extes_sra and the template cso, not c1_hf" in line


@pytest.mark.parametrize("name", ["cso", "standard", "c1_hf"])
@pytest.mark.parametrize("options", [{}, {"situation": True, "history_labels": False}])
def test_a_supporter_is_asked_as_in_training(tmp_path, sample_dialogues, name, options):
    settings = TemplateConfig(name, **options)
    train = asdict(TemplateConfig(name, **options, layout={**find_layout(name), "baselines": {}}))
    run = write_run(tmp_path / "run", prompt={"train": train, "seeker": {}})
    prompts = read_trained_prompts(run / "adapter", "supporter", ESCONV, "llm.supporter.checkpoint")
    assert isinstance(prompts, SupporterPrompts)
    restored = restore_trained_prompts(prompts.record(), ESCONV)
    assert isinstance(restored, SupporterPrompts)
    dialogue = merge_turns(sample_dialogues[0], "set")
    layout = load_layout(name)
    for example in build_examples(dialogue, ESCONV, settings, layout):
        turn = dialogue.turns[example.key.turn]
        for asked in (prompts, restored):
            messages, lead = asked.ask(
                SeekerProfile.of(dialogue), dialogue.turns[: example.key.turn], turn.reply.strategies[0]
            )
            if name == "cso":  # the other layouts draw their words by the dialogue's id
                assert messages == example.prompt.messages
                assert example.reply == f"{lead} {turn.reply.text}"
            else:
                assert [message.role for message in messages] == [message.role for message in example.prompt.messages]
                assert messages[1:] == example.prompt.messages[1:]
                assert turn.reply.strategies[0] in messages[0].content
                assert lead == ""


def test_a_seekers_words_are_those_of_its_run(tmp_path):
    run = seeker_run(tmp_path / "run")
    prompts = read_trained_prompts(run, "seeker", ESCONV, "llm.seeker.checkpoint")
    assert prompts == SeekerPrompts(WORDS) == restore_trained_prompts(prompts.record(), ESCONV)


def test_the_wrong_side_is_refused(tmp_path):
    seeker, supporter = seeker_run(tmp_path / "seeker"), write_run(tmp_path / "supporter")
    with pytest.raises(UserError, match=r"llm\.supporter\.checkpoint=.*: it was trained as the seeker, and"):
        read_trained_prompts(seeker, "supporter", ESCONV, "llm.supporter.checkpoint")
    with pytest.raises(UserError, match=r"trained as the supporter.*Fix: name a run of stage=sft data\.side=seeker"):
        read_trained_prompts(supporter, "seeker", ESCONV, "llm.seeker.checkpoint")
    with pytest.raises(UserError, match="trained as the seeker"):
        check_side(seeker / "adapter", "supporter", "checkpoint")
    check_side(seeker, "seeker", "init_from")
    check_side(None, "seeker", "init_from")
    check_side(tmp_path / "elsewhere" / "adapter", "seeker", "init_from")  # nothing says what it is


def test_another_inventory_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"trained on the strategies of 'esconv'.*'cso'. Fix: inventory=esconv"):
        read_trained_prompts(run, "supporter", load_inventory("cso"), "llm.supporter.checkpoint")


def test_a_run_that_is_gone_or_broken_is_told(tmp_path):
    with pytest.raises(UserError, match=r"the run that trained it is not there.*config\.yaml"):
        read_trained_prompts(tmp_path / "adapter", "supporter", ESCONV, "llm.supporter.checkpoint")
    run = write_run(tmp_path / "run", prompt={})
    with pytest.raises(UserError, match=r"its config\.yaml cannot be read"):
        read_trained_prompts(run, "supporter", ESCONV, "llm.supporter.checkpoint")


def test_a_run_of_older_code_trained_a_supporter(tmp_path):
    run = write_run(tmp_path / "run", data={})
    assert read_trained_prompts(run, "supporter", ESCONV, "x").record()["side"] == "supporter"
