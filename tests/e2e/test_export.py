"""Dialogues and models written for other tools by the command, and pushed to a stand-in of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from esc_lab.data.corpora import read_dialogues
from tests.e2e.conftest import LIMITS
from tests.training.exports.hub_server import TOKEN, Hub, serving, use
from tests.training.exports.test_gguf_file import serve

PUSH = ("export.push=me/esc", "export.licence=apache-2.0")
SYSTEM = "You are the supporter in an emotional support conversation."


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as held:
        use(held, monkeypatch)
        yield held


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("form", ["trl", "datasets", "llama_factory", "openai"])
def test_each_form_has_its_files_and_a_true_card(command, form):
    outcome = command("stage=export", f"export.data={form}", "export.system=true", LIMITS)
    assert outcome.status == 0, outcome.errors
    data = outcome.path / "data"
    kinds = ["sft", "preference", *(["dialogues"] if form == "datasets" else [])]
    for kind in kinds:
        for split, file in (("train", "train"), ("val", "valid"), ("test", "test")):
            lines = (data / kind / f"{file}.jsonl").read_text().splitlines()
            assert outcome.metrics[f"export/{kind}_{split}"] == len(lines) > 0
            assert all(SYSTEM in line for line in lines) == (kind != "dialogues")
    card = (data / "README.md").read_text()
    counts = [outcome.metrics[f"export/preference_{split}"] for split in ("train", "val", "test")]
    assert f"| `preference` | {' | '.join(f'{count:.0f}' for count in counts)} |" in card
    assert "| dialogues they are from | 4 | 2 | 2 |" in card
    assert "Licence of these files: apache-2.0\n- Licence of sample: Apache-2.0" in card
    assert metadata(card)["license"] == "apache-2.0"
    named = [config["config_name"] for config in metadata(card).get("configs", [])]
    assert sorted(named) == (sorted(kinds) if form in ("trl", "datasets") else [])
    assert str(outcome.path.parent) not in card
    assert (data / "dataset_info.json").exists() == (form == "llama_factory")


@pytest.mark.parametrize("form", ["trl", "datasets"])
def test_the_datasets_library_loads_what_the_card_names(command, tmp_path, form):
    datasets = pytest.importorskip("datasets")
    outcome = command("stage=export", f"export.data={form}", LIMITS)
    directory, cache = str(outcome.path / "data"), str(tmp_path / "cache")
    named = datasets.get_dataset_config_names(directory)
    assert sorted(named) == sorted(["preference", "sft", *(["dialogues"] if form == "datasets" else [])])
    columns = {"preference": {"prompt", "chosen", "rejected"}, "sft": {"prompt", "completion"}, "dialogues": {"text"}}
    for kind in named:
        loaded = datasets.load_dataset(directory, kind, cache_dir=cache)
        counts = {"val" if split == "validation" else split: len(rows) for split, rows in loaded.items()}
        assert counts == {split: outcome.metrics[f"export/{kind}_{split}"] for split in ("train", "val", "test")}
        assert columns[kind] <= {*loaded["train"].column_names}
    chosen = datasets.load_dataset(directory, cache_dir=cache)["train"][0]["chosen"]  # the default
    assert chosen[0]["role"] == "assistant"


def test_pairs_of_a_search_go_out_and_come_back(command, tmp_path):
    """Own preference data: their card goes with them, and a training reads them again."""
    source = tmp_path / "search" / "esc_pro"
    source.mkdir(parents=True)
    (source.parent / "config.yaml").write_text("stage: search\ndata: {name: mine, licence: CC0-1.0}\n")
    (source / "README.md").write_text("---\nlicense: unknown\n---\n\n# ESC-Pro from mine\n\n## Limits\n\nMany.\n")
    turns = [
        {"speaker": "seeker", "text": "hi"},
        {"speaker": "supporter", "text": "yes", "strategies": ["Question"], "value": 0.5, "visits": 3,
         "rejected": [{"text": "no", "strategies": ["Others"]}]},
    ]  # fmt: skip
    record = {"format": "esc-lab/1", "inventory": "esconv", "situation": "S", "turns": turns}
    for name in ("train", "valid", "test"):
        (source / f"{name}.jsonl").write_text(json.dumps(record | {"situation": name}))
    outcome = command("stage=export", "export.data=trl", "data=jsonl", f"data.path={source}")
    assert outcome.status == 0, outcome.errors
    card = (outcome.path / "data" / "README.md").read_text()
    assert "from what a search made of mine" in card
    assert "- Licence of mine: CC0-1.0; its terms" in card
    assert "### ESC-Pro from mine\n\n#### Limits\n\nMany." in card
    assert "| values or visits | 3 |" in card
    [again] = read_dialogues(outcome.path / "data/preference/train.jsonl", inventory="esconv")
    [first] = read_dialogues(source / "train.jsonl")
    assert [turn.reply.text for turn in again.turns] == [turn.reply.text for turn in first.turns]
    assert [reply.strategies for reply in again.turns[1].rejected] == [("Others",)]
    assert again.situation == "train"


def test_data_are_pushed_with_their_card(command, hub):
    outcome = command("stage=export", "export.data=datasets", *PUSH, LIMITS)
    assert outcome.status == 0, outcome.errors
    repo = hub.repos["datasets/me/esc"]
    assert repo.private
    [files] = repo.commits
    data = outcome.path / "data"
    assert files == {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert metadata(files["README.md"].decode())["license"] == "apache-2.0"
    for path in outcome.path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in outcome.output + outcome.errors


def test_what_cannot_be_pushed_is_not_written(command, hub):
    assert command("stage=export", "export.data=trl", *PUSH, LIMITS).status == 0
    outcome = command("stage=export", "export.data=trl", *PUSH, LIMITS)
    assert outcome.status == 1
    assert "export.push=me/esc: the hub has this dataset repository already. Fix: choose another" in outcome.errors
    assert outcome.directory is None or not (outcome.path / "data").exists()


def test_the_system_message_has_to_be_the_same_everywhere(command):
    outcome = command("stage=export", "export.data=trl", "export.system=true", "prompt=c1_hf", LIMITS)
    assert "export.system=true: the system message differs from prompt to prompt. Fix: prompt=cso" in outcome.errors


def test_a_model_is_pushed_with_what_runs_it(command, trained, hub):
    outcome = command("stage=export", f"checkpoint={trained.path}", *PUSH)
    assert outcome.status == 0, outcome.errors
    [files] = hub.repos["models/me/esc"].commits
    model = outcome.path / "model"
    assert files == {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert {"README.md", "Modelfile", "model.safetensors", "chat_template.jinja"} <= {*files}
    card = files["README.md"].decode()
    assert metadata(card)["license"] == "apache-2.0"
    assert "Licence of the weights here: apache-2.0." in card
    assert card.index("## Running it") < card.index("## Safety")
    assert f'SYSTEM """{SYSTEM}' in files["Modelfile"].decode()
    assert TOKEN not in outcome.output + outcome.errors + (outcome.path / "run.log").read_text()


def test_llama_cpp_answers_as_plain_transformers_does(command, trained):
    """Chats with and without a system message, of the exported directory and of the GGUF file in it."""
    pytest.importorskip("xllamacpp")
    outcome = command("stage=export", f"checkpoint={trained.path}", "export.gguf=true")
    assert outcome.status == 0, outcome.errors
    directory = outcome.path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    talk = [{"role": role, "content": text} for role, text in (
        ("user", "I lost my job."), ("assistant", "(Question) What happened?"), ("user", "They closed the shop.")
    )]  # fmt: skip
    with serve(directory / "model.gguf") as ask:
        for chat in (talk[:1], talk, [{"role": "system", "content": "Be brief."}, *talk]):
            inputs = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ids = model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
            served = ask("/v1/chat/completions", messages=chat, max_tokens=24, temperature=0)
            assert served["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
            assert served["choices"][0]["message"]["content"] == tokenizer.decode(ids, skip_special_tokens=True)
            assert len(set(ids.tolist())) > 3
    assert "with `model.gguf` of this directory" in (directory / "README.md").read_text()


def test_a_model_that_becomes_no_gguf_file_leaves_nothing(command):
    trained = command("stage=sft", "model=tiny_gemma3", "trainer.max_steps=1")
    outcome = command("stage=export", f"checkpoint={trained.path}", "export.gguf=true", "model=tiny_gemma3")
    assert (
        "export.gguf=true: models of type 'gemma3_text' are none of llama, qwen2. Fix: leave it out" in outcome.errors
    )
    assert outcome.directory is None or not (outcome.path / "model").exists()
    outcome = command("stage=export", "export.data=trl", "export.gguf=true")
    assert "export.gguf=true: export.data=trl writes dialogues. Fix: leave it or export.data out" in outcome.errors
