"""A search with the embedded model behind llama.cpp's server, which the run starts and ends."""

from __future__ import annotations

import json
import sys

import psutil
import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.errors import UserError
from esc_lab.search.clients.llama_server import LlamaServer, find_gguf
from tests.conftest import HANGS_S, model_config
from tests.e2e.test_bad_input import complaint
from tests.search.endpoint_roles import journalled

SEED = {
    "format": "esc-lab/1",
    "inventory": "esconv",
    "situation": "I lost my job last week.",
    "turns": [
        {"speaker": "seeker", "text": "I lost my job last week."},
        {"speaker": "supporter", "text": "I am sorry. How long were you there?", "strategies": ["Question"]},
        {"speaker": "seeker", "text": "Six years. Thank you for asking."},
    ],
}
SERVED = ("llm=llama_cpp", "llm.openai.threads=1", "llm.openai.slots=4", "llm.openai.context_tokens=8192")


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "llama_server" in " ".join(child.cmdline())]


def test_search(command, tmp_path):
    """A grammar has even so small a model write ratings and scores that can be read; a second run asks nothing."""
    (tmp_path / "seed.jsonl").write_text(json.dumps(SEED))
    call = (
        "stage=search", "data=jsonl", f"data.path={tmp_path}/seed.jsonl",
        "data.proportions={train: 1, val: 0, test: 0}", *SERVED, "llm.openai.ratings=written",
        f"llm.openai.timeout={HANGS_S}", "search.cache=false", "search.judge_check=0",
        *(f"llm.{role}.max_tokens=24" for role in ("supporter", "seeker")), "mcts.preferences.rejected_visits=0",
        "mcts.min_iterations=1", "mcts.max_iterations=2", "mcts.rollout_rounds=0",
    )  # fmt: skip
    outcome = command(*call)
    assert outcome.status == 0, outcome.errors
    assert servers() == []
    assert not {f"search/{role}/{what}" for role in ("strategist", "judge") for what in ("missing", "unusable")} & {
        *outcome.metrics
    }
    (dialogue, *_) = read_dialogues(outcome.path / "esc_pro/train.jsonl")
    assert dialogue.turns[1].reply.text == SEED["turns"][1]["text"]
    calls = journalled(outcome.path)
    said = {call["answer"]["text"] for call in calls if call["role"] == "supporter"}
    for rejected in dialogue.turns[1].rejected:
        assert any(rejected.text in text for text in said)
    assert {"strategist", "supporter", "seeker"} <= {call["role"] for call in calls}
    # The server has another port now, and what was asked of it is known.
    written = (outcome.path / "esc_pro/train.jsonl").read_bytes()
    (outcome.path / "metrics.json").unlink()
    again = command(*call, f"resume={outcome.path}")
    assert again.status == 0, again.errors
    assert len(journalled(again.path)) == len(calls)
    assert (again.path / "esc_pro/train.jsonl").read_bytes() == written


def test_what_cannot_be_served(command, tmp_path, monkeypatch):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    for file, message in (("broken", r"broken.gguf: llama.cpp cannot serve it: "), ("absent", r"no such file. Fix: ")):
        said = complaint(command("stage=search", *SERVED, f"llm.openai.serve={tmp_path}/{file}.gguf"))
        assert message in said
    assert servers() == []
    with pytest.raises(UserError, match=r"is no installed package with a \.gguf file"):
        find_gguf("auto", model_config("tiny_llama"))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match=r"not installed\. Fix: pip install 'esc-lab\[llama_cpp\]'"):
        LlamaServer(tmp_path / "broken.gguf", 1, 512, 1)
