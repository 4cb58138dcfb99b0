"""Who judged the data that a run was trained on."""

from __future__ import annotations

import json

import pytest

from esc_lab.judging.inputs import judge_model
from esc_lab.runs.lineage import find_searches
from tests.comparison.synthetic import settings, write_run


def config(client: str = "openai", model: str | None = None, endpoint: str | None = None, **local):
    played = {"client": client, "model": model, "checkpoint": local.pop("checkpoint", None)}
    played["recording"] = local.pop("recording", None)
    return {"llm": {"judge": played, "openai": {"model": endpoint}, "local": {"model": local}}}


QWEN = {"name": "Qwen2.5-7B", "path": "Qwen/Qwen2.5-7B-Instruct"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (config(model="gpt-4o-mini"), config(endpoint="gpt-4o-mini"), True),
        (config(model="gpt-4o-mini-2024-07-18"), config(model="openai/GPT-4o-mini"), True),
        (config(model="gpt-4o-mini"), config(model="gpt-4o", endpoint="gpt-4o-mini"), False),
        (config(model="Qwen/Qwen2.5-7B-Instruct"), config("local", **QWEN), True),
        (config("local", name="tiny", path="???"), config("local", name="tiny", path="???"), True),
        (config("local", name="tiny", path="???"), config("local", name="other", path="???"), False),
        (config("local", checkpoint="outputs/a", **QWEN), config("local", **QWEN), False),
        (config("local", checkpoint="outputs/a", **QWEN), config("local", checkpoint="./outputs/a", **QWEN), True),
    ],
)
def test_same_model(one, other, same):
    assert judge_model(one).same(judge_model(other)) is same
    assert judge_model(other).same(judge_model(one)) is same


def test_directories_are_the_same_by_place_and_not_by_name(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "model").mkdir(parents=True)
    one, other = (judge_model(config("local", model=str(tmp_path / name / "model"))) for name in ("one", "other"))
    assert not one.same(other)
    again = judge_model(config("local", model=str(tmp_path / "other" / ".." / "one" / "model")))
    assert one.same(again)


def test_recording_is_who_was_recorded(tmp_path):
    header = {"format": "esc-lab-journal/1", "config": {"roles": {"judge": {"client": {"model": "gpt-4o"}}}}}
    (tmp_path / "j").write_text(json.dumps(header) + "\n")
    assert judge_model(config("replay", recording=str(tmp_path / "j"))).same(judge_model(config(model="gpt-4o")))


def test_searches_behind_a_run(tmp_path):
    """Through the training that a training went on from; data as the folder that a search left, or a file in it."""

    def made(name, stage, **changes):
        return write_run(tmp_path / name, settings(stage, **changes), {"strategy/Q": 0.5})

    first, second = made("search1", "search"), made("search2", "search")
    sft = made("sft", "sft", data__path=str(first / "esc_pro" / "train.jsonl"))
    cso = made("cso", "cso", data__path=str(second / "esc_pro"), init_from=str(sft / "adapter"))
    trained = made("evaluate_cso", "evaluate", checkpoint=str(cso), data__path=str(second / "esc_pro"))
    # The base model was evaluated on the dialogues of a search, which is no training on it.
    base = made("evaluate_base", "evaluate", data__path=str(first / "esc_pro"))
    lost = made("evaluate_lost", "evaluate", checkpoint=str(tmp_path / "gone"))
    plain = made("plain", "sft", data__path=str(tmp_path / "corpus" / "train.jsonl"))
    assert find_searches(trained) == ([first, second], [])
    assert find_searches(base) == ([], [])
    assert find_searches(lost) == ([], [str(tmp_path / "gone")])
    assert find_searches(plain) == ([], [])
