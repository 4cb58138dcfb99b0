"""Python's face of esc-lab with models: it says of a talk what the stages say of it."""

from __future__ import annotations

import math
import re

import pytest

import esc_lab
from esc_lab.data.corpora import read_dialogues
from esc_lab.errors import UserError
from tests.conftest import CACHE, ROOT
from tests.e2e.conftest import execute

LATER = [{"role": "user", "content": "I lost my job."}, {"role": "assistant", "content": "(Question) When?"},
         {"role": "user", "content": "In May, and nobody knows."}]  # fmt: skip
QUICK = ["chat.max_new_tokens=6", f"cache_dir={CACHE}"]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, trained):
    words = (
        "stage=evaluate",
        f"checkpoint={trained.path}",
        "evaluate.generation.decisions=1",
        "prompt.eval.situation=true",
    )
    outcome = execute(tmp_path_factory.mktemp("evaluation"), *words)
    assert outcome.status == 0, outcome.errors
    return outcome.path


@pytest.fixture(scope="module")
def supporter(trained):
    return esc_lab.load(trained.path, QUICK)


def test_read_run_is_predictions_jsonl(evaluation):
    table = esc_lab.read_run(evaluation)
    assert set(table["run"]) == {evaluation.name}
    assert (table["template"] == "cso").all()
    (written,) = table[table["reply"].notna()].to_dict("records")
    assert 0 <= written["text/rouge_l"] <= 1
    assert written["sampling/max_new_tokens"] == 8
    assert table.filter(like="distribution/").sum(axis=1).tolist() == pytest.approx([1] * len(table))
    above = esc_lab.read_run(evaluation.parents[1])
    assert set(above["run"]) == {f"{evaluation.parents[1].name}/evaluate/{evaluation.name}"}


def test_strategies_are_those_of_an_evaluation(evaluation):
    """Probabilities by a cache that grows with a talk agree with those by token trees; the situation is shown."""
    supporter = esc_lab.load(evaluation, QUICK)
    dialogues = {dialogue.id: dialogue for dialogue in read_dialogues(evaluation / "dialogues.jsonl")}
    table = esc_lab.read_run(evaluation)
    for row in table.iloc[[0, len(table) // 2, -1]].to_dict("records"):
        shares = supporter.strategies(dialogues[row["dialogue"]], turn=row["turn"])
        assert [*shares] == [*supporter.inventory.names]
        for name, share in shares.items():
            # A chat takes none for less than 1e-30 times as probable as the most probable one.
            least = math.log(1e-30 * max(shares.values()))
            assert math.log(share) == pytest.approx(max(math.log(row[f"distribution/{name}"]), least), abs=0.1)
            assert share == pytest.approx(row[f"distribution/{name}"], rel=1e-3, abs=1e-20)


def test_replies(supporter):
    first = supporter.reply(LATER, "Question")
    assert (first.strategy, first.picked) == ("Question", True)
    assert first.shares == pytest.approx(supporter.strategies(LATER), abs=1e-6)
    supporter.reply("Another talk altogether.")
    assert supporter.reply(LATER, "Question").text == first.text
    assert supporter.reply("I lost my job.", seed=2).strategy in supporter.inventory.names


def test_a_talk_that_had_to_be_shortened_shortens_no_other(trained):
    supporter = esc_lab.load(trained.path, [*QUICK, "chat.cache_tokens=1024"])
    before = supporter.strategies(LATER)
    supporter.strategies([*LATER[:2], {"role": "user", "content": "Nobody knows. " * 40}] * 5)
    assert supporter.strategies(LATER) == pytest.approx(before, rel=1e-4)


def test_attention(supporter):
    looks = supporter.attention(LATER, "Question")
    assert {"log SRA", "sham-net"} == {*looks.measures}
    assert [len(row) for row in looks.rows] == [len(looks.prompt) + n for n in range(len(looks.rows))]
    assert looks.measures == pytest.approx(supporter.reply(LATER, "Question").measures, rel=1e-4)
    named = supporter.attention(LATER, "Information", template="c1_hf")
    assert any("Information" in text for _, _, text in named.spans)
    boosted = supporter.attention(LATER, "Information", template="c1_hf", boost=3.0)
    assert boosted.measures["log SRA"] > named.measures["log SRA"]


def test_the_configuration_says_how_replies_are_drawn(trained):
    supporter = esc_lab.load(str(trained.path / "adapter"), QUICK)
    supporter.config.chat.max_new_tokens = 2
    assert len(supporter.attention("I lost my job.").rows) <= 2


def test_a_model_that_no_run_has():
    supporter = esc_lab.load(esc_lab.compose(["stage=chat", "model=tiny_qwen2", *QUICK]))
    assert supporter.config.model.name == "tiny-qwen2"
    assert supporter.reply("I lost my job.").text


def test_what_cannot_be(supporter, trained):
    with pytest.raises(UserError, match="no strategy 'Hug'"):
        supporter.reply("I lost my job.", "Hug")
    with pytest.raises(UserError, match="did you mean 'cso'"):
        supporter.strategies("I lost my job.", template="cs")
    with pytest.raises(UserError, match="the run says that"):
        esc_lab.load(trained.path, ["model=tiny_qwen2"])


def test_the_blocks_of_the_page_run_as_they_stand(trained, tmp_path, monkeypatch, capsys):
    """One after the other, as its reader would, where a training lies under `outputs/`."""
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    (tmp_path / "outputs/sft").mkdir(parents=True)
    (tmp_path / "outputs/sft/RUN").symlink_to(trained.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESC_LAB_CACHE", str(CACHE))
    blocks, known = re.findall(r"```python\n(.*?)```", text, re.S), {}
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), known)
    assert (tmp_path / known["config"].run_dir / "metrics.json").exists()
    assert known["looks"].measures
    assert f"{known['answer'].strategy} {known['answer'].text}" in capsys.readouterr().out
