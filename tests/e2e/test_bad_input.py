"""What users do wrong: one clear line with the place and the fix, exit status 1, and nothing half-written."""

from __future__ import annotations

import json
import re

import pytest

TURNS = [
    {"speaker": "seeker", "text": "I lost my job."},
    {"speaker": "supporter", "text": "How long were you there?", "strategies": ["Question"]},
]
RECORD = {"format": "esc-lab/1", "inventory": "esconv", "turns": TURNS}


def complaint(outcome, *kept: str) -> str:
    """The one line that a failed command says; it left nothing but what was `kept` to go on from."""
    assert outcome.status == 1, outcome.errors
    lines = [line for line in outcome.errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.errors
    assert "Traceback" not in outcome.errors
    assert kept or outcome.directory is None
    if outcome.directory:
        assert {path.name for path in outcome.path.iterdir()} <= {
            ".hydra",
            "run.log",
            ".lock",
            "config.yaml",
            "environment.json",
            *kept,
        }
        assert lines[0] in (outcome.path / "run.log").read_text()
    return lines[0]


def corpus(folder, *records) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return f"data.path={path}"


def evaluate_corpus(command, folder, *records):
    words = ("stage=evaluate", "data=jsonl", "data.limit={}", "data.proportions={train: 0, val: 0, test: 1}")
    return command(*words, corpus(folder, *records))


def test_one_good_record_is_enough(command, tmp_path):
    """The records below are wrong for the reason that is named, and for no other."""
    assert evaluate_corpus(command, tmp_path, RECORD).metrics["decisions"] == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([RECORD, '{"format": "esc-lab/1", "turns": ['], r"corpus\.jsonl:2, column 35: broken JSON: .* Fix: "),
        ([RECORD, {**RECORD, "turns": []}], r"corpus\.jsonl:2: the dialogue has no turns\. Fix: "),
        ([{**RECORD, "turns": TURNS[:1]}], r"corpus\.jsonl:1: the dialogue has no supporter turn\. Fix: "),
        (
            [{**RECORD, "turns": [TURNS[0], {**TURNS[1], "strategies": ["Qestion"]}]}],
            r"corpus\.jsonl:1, turn 2: .*'Qestion'.*'Question'.* Fix: ",
        ),
        ([{**RECORD, "turns": [TURNS[0], {**TURNS[1], "strategies": []}]}], "no decision to evaluate.* Fix: "),
        ([""], r"corpus\.jsonl: the file is empty\. Fix: "),
        ([{**RECORD, "inventory": "extes"}], r"corpus\.jsonl:1.*'extes'.* Fix: "),
    ],
    ids=["broken JSON", "no turns", "no supporter", "unknown strategy", "unlabelled", "empty file", "other inventory"],
)
def test_records(command, tmp_path, records, message):
    assert re.search(message, complaint(evaluate_corpus(command, tmp_path, *records)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.nmae=x"], "'model.nmae'; did you mean 'model.name'"),
        (["+trainer.max_epoch=2"], "'trainer.max_epoch'; did you mean 'trainer.max_epochs'"),
        (["model=tinyllama"], "model=tinyllama: no such option; did you mean 'tiny_llama'"),
        (["data.path=absent.jsonl"], "data.path=absent.jsonl: no such file"),
        (["init_from=absent"], "init_from=absent: no such file"),
        (["data.step_dialogues=0"], "data.step_dialogues=0: has to be at least 1"),
        (["seed=1,2"], "seed=1,2 names several values. Fix: add -m"),
        (["--nothing"], "unknown option --nothing"),
    ],
)
def test_command_line(command, words, message):
    outcome = command("stage=sft", *words)
    assert message in complaint(outcome)
    assert outcome.directory is None


def test_chat_templates(command, tmp_path):
    for name, text, message in (
        ("raises", "{{ raise_exception('only one message') }}", "cannot render a dialogue: only one message"),
        ("syntax", "{% for message in messages %}", "chat template"),
        ("drops", "{{ messages[0]['content'] }}<|im_end|>", "drops message 2"),
        ("open", "{% for m in messages %}{{ m['content'] }} {% endfor %}", "no end-of-turn token"),
    ):
        path = tmp_path / f"{name}.jinja"
        path.write_text(text)
        words = (f"model.chat_template={path}", f"cache_dir={tmp_path}/cache")
        assert message in complaint(command("stage=evaluate", *words)), name
    line = complaint(command("stage=evaluate", "model.chat_template=chatlm"))
    assert "model.chat_template=chatlm" in line
    assert "chatml" in line


def test_budget_below_one_example(command):
    for stage in ("sft", "evaluate"):
        line = complaint(command(f"stage={stage}", "data.row_tokens=64"))
        assert re.search(r"above the budget of 64\. Fix: raise data\.row_tokens", line)


def test_checkpoints(command, trained, tmp_path):
    line = complaint(command("stage=evaluate", f"checkpoint={trained.path}", "model=tiny_qwen2"))
    assert re.search(r"trained from tiny-llama .* not from tiny-qwen2 .* Fix: ", line)
    for empty in (tmp_path, trained.path / "checkpoints"):
        line = complaint(command("stage=evaluate", f"checkpoint={empty}"))
        assert re.search(r"no trained adapter/ or model/ in it\. Fix: ", line)
    assert "Fix: add checkpoint=<run directory of an sft run>" in complaint(command("stage=export"))


def test_places_that_cannot_be_written(command, trained, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    compare = ("stage=compare", f"compare.runs=[{trained.path}]")
    for key in ("output_root", "cache_dir", "export.directory"):
        assert f"{key}={file}/below: cannot be written to" in complaint(command(*compare, f"{key}={file}/below"))
    assert f"{file}/below: Not a directory" in complaint(command(*compare, f"hydra.run.dir={file}/below"))


def test_export_does_not_overwrite(command, trained, tmp_path):
    (tmp_path / "mine").write_text("")
    line = complaint(command("stage=export", f"checkpoint={trained.path}", f"export.directory={tmp_path}"))
    assert f"{tmp_path}: there is something already" in line


def test_compare(command, trained, tmp_path):
    assert "compare.runs=[" in complaint(command("stage=compare"))
    assert f"{tmp_path} holds no config.yaml" in complaint(command("stage=compare", f"compare.runs=[{tmp_path}]"))
    (tmp_path / "config.yaml").write_text((trained.path / "config.yaml").read_text())
    assert "it crashed or is not done yet" in complaint(command("stage=compare", f"compare.runs=[{tmp_path}]"))
    (tmp_path / "metrics.json").write_text('{"strategy/Q": 1')
    assert f"{tmp_path}: no finished run" in complaint(command("stage=compare", f"compare.runs=[{tmp_path}]"))
    (tmp_path / "metrics.json").write_text("{}")
    assert "none of its metrics" in complaint(command("stage=compare", f"compare.runs=[{tmp_path}]"))


def test_trainer_settings(command):
    for word in ("trainer.accelerator=gpux", "trainer.strategy=dpp", "trainer.devices=many"):
        assert word.split("=")[0] in complaint(command("stage=sft", word))
    assert "not one of auto, ddp, fsdp2" in complaint(command("stage=sft", "trainer.strategy=deepspeed"))
    for words, key in (
        (("stage=evaluate", "checkpoint=null"), "trainer.strategy"),
        (("stage=sft", "model.quantization=4bit"), "model.quantization"),
        (("stage=cso", "trainer.precision=16-mixed"), "trainer.precision"),
    ):
        assert f"{key}=" in complaint(command(*words, "trainer.strategy=fsdp2"))


def test_adapter_targets(command):
    line = complaint(command("stage=sft", "adapter.target_modules=nothing"))
    assert "adapter.target_modules=nothing" in line


def test_quantization_needs_cuda(command):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    line = complaint(command("stage=sft", "adapter=qlora"))
    assert re.search(r"model\.quantization=4bit: .*CUDA.* Fix: ", line)


def test_traceback_on_request(command):
    outcome = command("stage=evaluate", "data.row_tokens=64", "hydra.verbose=true")
    assert outcome.status == 1
    assert "error: " in outcome.errors
    assert "Traceback" in outcome.errors
    assert "esc_lab.tokens.examples.TooLongError: " in (outcome.path / "run.log").read_text()
