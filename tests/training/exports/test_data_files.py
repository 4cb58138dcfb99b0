"""Dialogues written for other tools: read back, and taken by the tools where they are installed."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig

from esc_lab.data.corpora import ReadReport, read_dialogues
from esc_lab.data.corpora.esc_pro_tree import Seed, tree_id
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.models.load import load_model
from esc_lab.training.exports.chats import build_chats
from esc_lab.training.exports.data_files import write_datasets, write_llama_factory, write_openai, write_trl
from tests.conftest import CACHE, INVENTORIES, LAYOUTS, model_config

WORDING = LAYOUTS["cso"].wording


def reply(text: str, *strategies: str) -> Turn:
    return Turn("supporter", Reply(text, strategies))


def seeker(text: str) -> Turn:
    return Turn("seeker", Reply(text))


def talk(*turns: Turn, problem: str = "Work", situation: str = "My boss keeps my tips.") -> Dialogue:
    return Dialogue(turns, "cso", tree_id(Seed(problem, situation), turns), situation, "", problem)


def with_rejected(turn: Turn, *others: Reply) -> Turn:
    return replace(turn, rejected=others)


def branches() -> list[Dialogue]:
    """Two dialogues of one tree, one of another seed; a reply that looks labelled and is not."""
    start = (
        seeker("hi"),
        with_rejected(reply("one", "Affirmation"), Reply("no one", ("Share Information",)), Reply("bare")),
        seeker("and then?"),
    )
    ends = [with_rejected(reply(text), Reply("(no) way"), Reply("no", ("Affirmation",))) for text in ("two", "(two)")]
    return [talk(*start, ends[0]), talk(*start, ends[1]), talk(*start[:2], situation="Another boss.")]


def chats(dialogues: list[Dialogue], lost: Counter[str] | None = None, system: str = "") -> dict[str, Any]:
    counts = Counter[str]() if lost is None else lost
    return {"train": build_chats(dialogues, WORDING, system, counts)}


def records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("system", ["", "You are the supporter."])
def test_trl_pairs_are_read_back_as_the_same_dialogues(tmp_path: Path, system: str) -> None:
    lost = Counter[str]()
    counts = write_trl(chats(branches(), lost, system), tmp_path, lost)
    assert counts == {("sft", "train"): 4, ("preference", "train"): 8}
    report = ReadReport()
    assert read_dialogues(tmp_path / "preference/train.jsonl", report=report) == branches()
    assert report.system_messages_dropped == (8 if system else 0)
    assert +lost == {  # the turns that two dialogues of a tree share
        "sft records that several dialogues have, beyond the first": 1,
        "preference records that several dialogues have, beyond the first": 2,
    }


def test_trl_replies_are_read_back_as_the_same_dialogues_without_rejected_ones(tmp_path: Path) -> None:
    write_trl(chats(branches()), tmp_path, Counter())
    given = [
        replace(dialogue, turns=tuple(replace(turn, rejected=()) for turn in dialogue.turns)) for dialogue in branches()
    ]
    assert read_dialogues(tmp_path / "sft/train.jsonl") == given


def test_the_sample_corpus_comes_back_pair_by_pair(tmp_path: Path, sample_dialogues: list[Dialogue]) -> None:
    write_trl(chats(sample_dialogues), tmp_path, Counter())
    again = read_dialogues(tmp_path / "preference/train.jsonl", inventory="esconv")

    def pairs(dialogues: list[Dialogue]) -> set[Any]:
        def told(answer: Reply) -> Any:
            return answer.text, answer.strategies[:1]

        return {
            (dialogue.situation, index, told(turn.reply), told(other))
            for dialogue in dialogues
            if dialogue.turns[0].speaker == "seeker"  # an opening is quoted in the message after it
            for index, turn in enumerate(dialogue.turns)
            for other in turn.rejected
        }

    assert pairs(sample_dialogues) <= pairs(again)
    assert sum(map(len, [pairs(sample_dialogues)])) > 300


def test_chats_are_those_of_the_trainings(tmp_path: Path) -> None:
    """Sides take turns, whatever the dialogue: an opening is quoted, turns that were kept apart have a pause."""
    dialogue = talk(
        with_rejected(reply("Hello.", "Others"), Reply("Go away.")),
        seeker("hi"),
        seeker("there"),
        with_rejected(reply("I am sorry.", "Affirmation"), Reply("I am sorry.", ("Affirmation",))),
        reply("What happened?", "Question", "Affirmation"),
        seeker("bye"),
    )
    lost = Counter[str]()
    first, second = build_chats([dialogue], WORDING, "Be kind.", lost)
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "user"]
    assert (second.messages[0].content, first.messages[1].content.splitlines()[1:]) == ("Be kind.", ["hi", "there"])
    assert '"(Others) Hello."' in first.messages[1].content
    assert (first.reply, first.last, second.messages[2].content) == ("(Affirmation) I am sorry.", False, first.reply)
    assert (second.messages[3].content, second.reply, second.last) == (
        WORDING["pause"], "(Question) What happened?", True,
    )  # fmt: skip
    assert +lost == {
        "openings quoted in the first message": 1,
        "rejected replies of openings": 1,
        "rejected replies equal to the given or to another one": 1,
        "further strategies": 1,
        "turns after the last reply": 1,
    }


def test_datasets_hold_whole_dialogues_too(tmp_path: Path) -> None:
    turn = Turn("supporter", Reply("one", ("Affirmation",), 0.5, 3), (Reply("two", ("Affirmation",), -1.0, 1),))
    dialogue = Dialogue((seeker("hi"), turn), "cso", "tree", meta={"iter": 3, "more": {"a": []}})
    write_datasets(chats([dialogue]), tmp_path, Counter(), {"train": [dialogue]}, INVENTORIES["cso"])
    assert [*records(tmp_path / "dialogues/train.jsonl")[0]] == ["text"]
    assert read_dialogues(tmp_path / "dialogues/train.jsonl") == [dialogue]


def test_openai_files_have_the_documented_keys(tmp_path: Path) -> None:
    write_openai(chats(branches(), system="Be kind."), tmp_path, Counter())
    whole = records(tmp_path / "sft/train.jsonl")
    assert [len(record["messages"]) for record in whole] == [5, 5, 3]
    assert all([*record] == ["messages"] and record["messages"][-1]["role"] == "assistant" for record in whole)
    pairs = records(tmp_path / "preference/train.jsonl")
    assert len(pairs) == 6  # of the first turn each pair once: nothing tells the seeds apart
    for record in pairs:
        assert {*record} == {"input", "preferred_output", "non_preferred_output"}
        assert [message["role"] for message in record["input"]["messages"]][:2] == ["system", "user"]
        assert record["input"]["messages"][-1]["role"] == "user"
        for key in ("preferred_output", "non_preferred_output"):
            assert [message["role"] for message in record[key]] == ["assistant"]


def test_llama_factory_conversations_alternate_and_are_named(tmp_path: Path) -> None:
    opened = talk(reply("Hello.", "Others"), seeker("hi"), reply("one", "Affirmation"))
    write_llama_factory(chats([*branches(), opened], system="Be kind."), tmp_path, Counter(), "mine")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert {*info} == {"mine_sft_train", "mine_preference_train"}
    for name, entry in info.items():
        for record in records(tmp_path / entry["file_name"]):
            assert record.keys() == {*entry["columns"].values()}
            sides = [message["from"] for message in record["conversations"]]
            odd = name.startswith("mine_preference")
            assert sides == (["human", "gpt"] * len(sides))[: len(sides)]
            assert len(sides) % 2 == odd == entry.get("ranking", False)
            assert record["system"] == "Be kind."


@pytest.mark.parametrize(
    ("write", "kind", "form"),
    [
        (write_openai, "sft", "messages"),
        (write_openai, "preference", "openai_preference"),
        (write_llama_factory, "sft", "sharegpt"),
        (write_llama_factory, "preference", "sharegpt"),
    ],
)
def test_what_was_said_comes_back_from_the_other_forms(tmp_path: Path, write: Any, kind: str, form: str) -> None:
    """They hold no situation and no problem."""
    dialogues = branches()[:2]
    write(chats(dialogues), tmp_path, Counter())
    again = read_dialogues(tmp_path / kind / "train.jsonl", form, inventory="cso")
    if kind == "sft":
        dialogues = [
            replace(dialogue, turns=tuple(replace(turn, rejected=()) for turn in dialogue.turns))
            for dialogue in dialogues
        ]
    assert {dialogue.turns for dialogue in again} == {dialogue.turns for dialogue in dialogues}


def test_llama_factory_takes_every_record(tmp_path: Path) -> None:
    """Its converter marks what it cannot use by an empty prompt."""
    pytest.importorskip("datasets", reason="the `datasets` library is not installed")
    parser = pytest.importorskip("llamafactory.data.parser", reason="LLaMA-Factory is not installed")
    converter = pytest.importorskip("llamafactory.data.converter", reason="LLaMA-Factory is not installed")
    write_llama_factory(chats(branches(), system="Be kind."), tmp_path, Counter())
    for attributes in parser.get_dataset_list(["esc_lab_sft_train", "esc_lab_preference_train"], str(tmp_path)):
        convert = converter.get_dataset_converter("sharegpt", attributes, SimpleNamespace(media_dir=""))
        for record in records(tmp_path / attributes.dataset_name):
            converted = convert(record)
            assert converted["_prompt"]
            assert len(converted["_response"]) == 1 + attributes.ranking
            assert converted["_system"] == "Be kind."


def test_trl_trains_a_step_on_the_pairs(tmp_path: Path) -> None:
    """Its DPOTrainer makes prompts and replies of them, none empty, starts from even odds and moves the weights."""
    datasets = pytest.importorskip("datasets", reason="the `datasets` library is not installed")
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    write_trl(chats(branches(), system="Be kind."), tmp_path, Counter())
    data = datasets.load_dataset("json", data_files=str(tmp_path / "preference/train.jsonl"), split="train",
                                 cache_dir=str(tmp_path / "cache"))  # fmt: skip
    loaded = load_model(model_config("tiny_llama"), CACHE)
    tokenizer = loaded.encoder.tokenizer
    settings = trl.DPOConfig(
        output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, max_steps=1, learning_rate=0.1,
        per_device_train_batch_size=8, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=loaded.model, args=settings, train_dataset=data, processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )  # fmt: skip
    assert len(trainer.train_dataset) == 8
    for record in trainer.train_dataset:
        assert tokenizer.decode(record["chosen_ids"]).startswith(record["chosen"][0]["content"][:4])
        assert all(len(record[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids"))
        assert record["chosen_ids"] != record["rejected_ids"]
    trainer.train()
    [first] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is its reference
    assert any(value.abs().max() > 0 for name, value in trainer.model.named_parameters() if "lora_B" in name)
