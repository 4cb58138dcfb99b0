"""The schema, its checks, and what `run.check` says about command lines."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from esc_lab import config
from esc_lab.cli.compositions import CONF, ConfigDirs, groups, use_config_dirs
from esc_lab.cli.help import help_text
from esc_lab.cli.overrides import check, translate_python_dict
from esc_lab.config import item as config_item
from esc_lab.config.checks import problems, unknown_key
from esc_lab.config.evaluate import GenerationConfig
from esc_lab.errors import UserError

KEYS = {key.name: key for key in list(config.keys())}


def composed(*words: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["stage=sft", *words])


def complaint(*words: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        check(["stage=sft", *words], multirun=multirun)
    return str(caught.value)


# --- the schema and conf/ agree


def test_every_key_has_a_doc_and_a_fitting_default():
    for key in KEYS.values():
        assert key.doc.strip(), key.name
        if key.choices and key.default not in (None, "???"):
            chosen = key.default if isinstance(key.default, list) else [key.default]
            assert set(chosen) <= set(key.choices), key.name
        if key.within != config_item.ANY and key.default is not None:
            assert key.within[0] <= key.default <= key.within[1], key.name


@pytest.mark.parametrize("experiment", ["mcts", "beta_search", "demo"])
def test_the_text_of_a_configuration_is_that_of_omegaconf(experiment):
    words = ("tags=['1e3','yes','null','a: b','ä','1:30','']", "data.limit={train: 3}")
    cfg = config.typed(composed(f"experiment={experiment}", *words))
    assert config.to_yaml(cfg) == OmegaConf.to_yaml(OmegaConf.structured(cfg))


@pytest.mark.parametrize("group", sorted(groups()))
def test_every_option_composes_without_problems_of_its_own(group):
    """Missing values aside: those are the user's to give."""
    for option in groups()[group]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            stage = "evaluate" if option == "endpoint" else "sft"  # which has no weights to train
            cfg = compose("config", [f"{group}={option}", *([] if group == "stage" else [f"stage={stage}"])])
        known = [
            message
            for message in problems(cfg)
            if not re.match("missing value|stage=(compare|export|judge|survey) needs", message)
        ]
        assert known == [], option


def test_stages_are_named_alike_everywhere():
    assert sorted(config.STAGES) == list(groups()["stage"])
    for stage in config.STAGES:
        assert (Path(config.__file__).parents[1] / "stages" / f"{stage}.py").exists()


def test_typed_gives_plain_dataclasses_with_everything_resolved(monkeypatch):
    monkeypatch.setenv("ESC_LAB_CACHE", "/somewhere")
    cfg = config.typed(composed("model=tiny_llama", "data.limit={train: 4}", "prompt=c1_hf"))
    assert isinstance(cfg, config.Config)
    assert isinstance(cfg.evaluate.generation, GenerationConfig)
    assert cfg.cache_dir == "/somewhere"
    assert cfg.data.limit == {"train": 4}
    assert cfg.model.shape["model_type"] == "llama"
    assert (cfg.prompt.eval.template, cfg.prompt.eval.history_labels) == ("c1_hf", False)


def test_adapter_options_that_set_the_model_too():
    assert composed("adapter=full").model.dtype == "float32"
    assert composed("adapter=qlora").model.quantization == "4bit"


# --- names


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("model.nmae", "model.name"),
        ("modle.name", "model.name"),
        ("model.Name", "model.name"),
        ("model.quantisation", "model.quantization"),
        ("model.template", "model.chat_template"),
        ("modl", "model"),
        ("sead", "seed"),
        ("satge", "stage"),
        ("lr", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("trainer.lr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("epochs", "trainer.max_epochs"),
        ("max_epochs", "trainer.max_epochs"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("steps", "trainer.max_steps"),
        ("adapter.rank", "adapter.r"),
        ("adapter.lora_alpha", "adapter.alpha"),
        ("temperature", "evaluate.generation.temperature"),
        ("evaluate.max_new_tokens", "evaluate.generation.max_new_tokens"),
        ("evaluate.limit", "data.limit"),
        ("data.file", "data.path"),
        ("wandb.project", "logger.project"),
        ("scheduler.warmup_steps", "scheduler.warmup"),
        ("output_dir", "output_root"),
        ("ckpt", "checkpoint"),
    ],
)
def test_typical_slips_are_understood(wrong, meant):
    assert f"'{wrong}'; did you mean '{meant}'?" in str(unknown_key(wrong))


def test_a_strange_key_of_a_section_shows_what_the_section_has():
    assert "'logger' has name, project, entity, mode, extra, group, artifacts." in str(unknown_key("logger.zzz"))
    assert "did you mean" not in str(unknown_key("zzz"))


@given(st.sampled_from(sorted(KEYS)), st.data())
@settings(max_examples=40)
def test_one_slip_of_the_finger_names_the_key(name, data):
    """One letter left out of the last part of a long enough key."""
    start = name.rfind(".") + 1
    if len(name) - start < 5:
        return
    at = data.draw(st.integers(start, len(name) - 1))
    wrong = name[:at] + name[at + 1 :]
    if unknown_key(wrong) is not None:
        assert f"'{name}'" in str(unknown_key(wrong))


def test_known_names_pass():
    for name in [*KEYS, "model", "evaluate.generation", "data.limit.test", "data.strategy_weights.Question"]:
        assert unknown_key(name) is None


# --- command lines


def test_unknown_keys_are_refused_however_they_are_written():
    found = complaint("trainer.max_epoch=1", "+trainer.max_epoch=1", "++trainer.max_epoch=1", "~trainer.max_epoch")
    assert found.count("'trainer.max_epoch'; did you mean 'trainer.max_epochs'?") == 4
    assert "trainer" in complaint("trainer={max_epoch: 2}")


def test_wrong_names_and_options():
    wrong = {
        "model=tinyllama": "model=tinyllama: no such option; did you mean 'tiny_llama'?",
        "+experiment=dmo": "did you mean 'demo'?",
        "model=null": "model=null: no such option",
        "model=[tiny_llama]": "model=['tiny_llama']: no such option",
        "stage='sftt'": "did you mean 'sft'?",
        "++foo.bar=1": "unknown config key 'foo.bar'",
        "~modle": "did you mean 'model'?",
    }
    found = complaint(*wrong)
    assert f"{len(wrong)} things are wrong" in found
    for message in wrong.values():
        assert message in found


def test_a_wrong_stage_is_one_mistake():
    with pytest.raises(UserError, match=r"^stage=stf: no such option; did you mean 'sft'\?") as caught:
        check(["stage=stf"])
    assert "no stage chosen" not in str(caught.value)


def test_values_out_of_range_or_choice():
    wrong = {
        "model.dtype=float8": "model.dtype=float8: not one of float32, bfloat16, float16",
        "trainer.precision=fp16": "trainer.precision=fp16: not one of",
        "adapter.dropout=1.5": "adapter.dropout=1.5: has to be from 0 to 1",
        "optimizer.lr=nan": "optimizer.lr=nan: has to be at least 0",
        "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: two numbers",
        "optimizer.weight_decay=inf": "optimizer.weight_decay=inf: has to be a finite number",
        "trainer.max_epochs=0": "trainer.max_epochs=0: nothing would be trained",
        "data.proportions={train: 0.9, val: -0.1}": "'val': -0.1",
        "model.chat_template=absent.jinja": "absent.jinja",
        "data.limit={tset: 20}": "data.limit={'tset': 20}",
        "data.strategy_weights={Qestion: 2}": "no strategy 'Qestion' in esconv; did you mean 'Question'?",
        "data.path=null": "",
    }
    found = complaint(*wrong)
    assert f"{len(wrong) - 1} things are wrong" in found
    for message in wrong.values():
        assert message in found
    assert "have to add up to 1" in complaint("data.proportions={train: 0.9}")


def test_training_has_an_end():
    assert "training would never end" in complaint("trainer.max_epochs=-1")
    assert check(["stage=sft", "trainer.max_epochs=-1", "trainer.max_steps=2"])


def test_a_metric_to_look_for_is_one_of_the_stage():
    for stage, name, hint in (
        ("evaluate", "strategy/q", "strategy/Q"),
        ("evaluate", "Q", "strategy/Q"),
        ("pipeline", "strategy/Q", "strategy/Q"),
        ("pipeline", "cso/strategy/QQ", "cso/strategy/Q"),
        ("pipeline", "cso/val/lss", "cso/val/loss"),
        ("sft", "val/lss", "val/loss"),
        ("cso", "loss", "val/loss"),
    ):
        found = complaint(f"stage={stage}", f"optimize_metric={name}")
        assert f"optimize_metric={name}: no such metric; did you mean '" in found
        assert hint in found
    for stage, name in (
        ("evaluate", "strategy/Q"),
        ("pipeline", "cso/strategy/Q"),
        ("pipeline", "cso/val/loss"),
        ("sft", "val/loss"),
        ("cso", "train/margin"),
    ):
        assert check([f"stage={stage}", f"optimize_metric={name}"])


def test_words_that_do_not_compose():
    wrong = {
        "hydra/launcher=jblib": "joblib",
        "hydra.verbos=true": "did you mean 'hydra.verbose'?",
        "hydra.launcher.n_job=2": "did you mean 'hydra.launcher.n_jobs'?",
        "+model@trainer=tiny_llama": "conf/model/tiny_llama.yaml: unknown config key 'trainer.name'",
        "model@foo=tiny_llama": "'model@foo'",
        "~trainer.max_epochs": "does not support deletion",
        "trainer.max_steps=x": "'x' of type 'str' could not be converted to Integer",
        "adapter.dropout=[1]": "adapter.dropout",
        "tags=a": "tags=a",
        "seed=null": "seed=null",
    }
    found = complaint(*wrong)
    assert f"{len(wrong)} things are wrong" in found
    for message in wrong.values():
        assert message in found


@pytest.mark.parametrize("word", ["model.name='a", "model.name", "seed=range(x)"])
def test_words_that_cannot_be_read(word):
    assert complaint(word).startswith("command line: ")


def test_what_stages_need():
    assert "stage=compare needs run directories" in complaint("stage=compare")
    found = complaint("stage=export", "model=directory")
    assert "stage=export needs a trained model" in found
    assert "missing value for 'model.name'" in found
    assert "data.path: " in complaint("data.path=${oc.env:NO_SUCH_VARIABLE}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export.data=csv", "export.data=csv: not one of trl, datasets, llama_factory, openai"),
        ("export.data=trl checkpoint=.", "checkpoint=.: export.data=trl writes dialogues. Fix: leave it or"),
        ("export.data=trl export.safety=.", "export.safety=.: export.data=trl writes dialogues"),
        ("export.data=trl data.side=seeker", "data.side=seeker: the supporter's replies are written"),
        ("checkpoint=. export.system=true", "export.system=true: a model's chat template has it already"),
        ("checkpoint=. export.push=me", "export.push=me: no repository. Fix: give OWNER/NAME"),
        ("checkpoint=. export.push=me/x", "export.push=me/x: what is pushed needs a licence. Fix: export.licence="),
        ("checkpoint=. export.public=true", "export.public=true: nothing is pushed. Fix: add export.push=OWNER/NAME"),
        ("checkpoint=. export.update=true", "export.update=true: nothing is pushed"),
        ("checkpoint=. export.licence=Apache-2.0", "export.licence=Apache-2.0: not a licence as the hub calls it"),
    ],
)
def test_what_exports_need(words, message):
    assert message in complaint("stage=export", "model=tiny_llama", *words.split())


SECRET = "sk-recognisable-0123456789"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_password"])
@pytest.mark.parametrize("value", ["${{oc.env:{}}}", "${{oc.env:{},none}}", "x-${{oc.env:{}}}-y"])
@pytest.mark.parametrize("key", ["logger.project", "output_root", "tags.0"])
def test_secrets_do_not_come_into_the_configuration(monkeypatch, name, value, key):
    monkeypatch.setenv(name, SECRET)
    word = f"{key}={value.format(name)}" if key != "tags.0" else f"tags=['{value.format(name)}']"
    found = complaint(word)
    assert f"${{oc.env:{name}}}: the value of {name} would come into config.yaml and to W&B" in found
    assert SECRET not in found


def test_other_variables_may_be_read(monkeypatch):
    monkeypatch.setenv("MY_PROJECT", "esc")
    assert composed("logger.project=${oc.env:MY_PROJECT}").logger.project == "esc"
    assert composed("logger.project=${oc.env:NO_SUCH_VARIABLE,other}").logger.project == "other"


def test_settings_of_endpoints():
    found = complaint(f"llm.openai.key_variable={SECRET}")
    assert "llm.openai.key_variable: no name of an environment variable" in found
    assert SECRET not in found
    found = complaint("llm.openai.extra_body={temperature: 1, reasoning_effort: low, stream: true}")
    assert "llm.openai.extra_body.temperature: no field that can be added. Fix: llm.<role>.temperature" in found
    assert "llm.openai.extra_body.stream" in found
    assert "reasoning_effort" not in found
    found = complaint("stage=search", "mcts=quick", "llm.judge.top_p=null")
    assert "llm.judge.top_p=null: a local model needs one" in found
    words = ("stage=search", "llm=openai", "llm.openai.model=m", "llm.judge.top_p=null", "llm.judge.temperature=null")
    assert problems(composed(*words)) == []


def test_several_samples_need_a_temperature_and_somebody_who_writes():
    several = ("stage=evaluate", "evaluate.generation.samples=3")
    assert "at temperature 0 all samples are the same reply. Fix: evaluate.generation.temp" in complaint(*several)
    drawn = (*several, "evaluate.generation.temperature=0.7")
    assert "no reply is written" in complaint(*drawn, "evaluate.replies=gold")
    assert "no reply is written" in complaint(*drawn, "evaluate.generation.enabled=false")
    assert check([*drawn]) == [*drawn]


def test_states_are_shared_below_adapters_alone():
    words = ("stage=evaluate", "evaluate.share_states=true")
    assert "evaluate.share_states=true: adapters in all layers leave no states to share" in complaint(*words)
    assert check([*words, "adapter.layers=10"]) == [*words, "adapter.layers=10"]


def test_everything_wrong_is_told_together(tmp_path):
    (tmp_path / "file").write_text("")
    wrong = {
        "model.nmae=x": "'model.nmae'",
        "trainer.max_steps=a": "trainer.max_steps=a",
        "data=esconv": "missing value for 'data.path'",
        "init_from=/absent": "init_from=/absent",
        "adapter.r=0": "adapter.r=0",
        f"output_root={tmp_path}/file/below": "below: cannot be written to",
    }
    found = complaint(*wrong)
    assert f"{len(wrong)} things are wrong" in found
    for message in wrong.values():
        assert message in found


@pytest.mark.parametrize(
    "words",
    [
        ["model.name='a, b=c [d]'", 'logger.project="quoted"', "logger.group=with\\ space", "data.limit.test=5"],
        ["data.limit={train: 4, val: 2, test: 2}", "data.proportions={train: 1, val: 0, test: 0}", "tags=[a,b]"],
        ["data={limit: {train: 4}}", "data.strategy_weights={Question: 2.0, Self-disclosure: 0.5}", "experiment=demo"],
        ["model=tiny_llama.yaml", "model.shape.rope_theta=500", "+model.shape.more=1", "++trainer.max_epochs=2"],
        ["~trainer", "~logger=wandb", "hydra.verbose=true", "hydra.launcher.n_jobs=2", "+hydra.job.env_set.A=b"],
        ["hydra/launcher=basic", "hydra.run.dir=/tmp/x", "evaluate.generation.decisions=null", "checkpoint=null"],
    ],
)
def test_right_words(words):
    check(["stage=sft", *words])


@pytest.mark.parametrize(
    ("word", "translated"),
    [
        ("trainer={'max_epochs': 2}", "trainer={max_epochs: 2}"),
        ("data={'limit': {'train': 4}, 'path': None, 'merge': 'first'}",
         "data={limit: {train: 4}, path: null, merge: 'first'}"),
        ("logger={'tags': ['a', True]}", "logger={tags: ['a', true]}"),
        ("trainer={max_epochs: 2}", "trainer={max_epochs: 2}"),
        ("tags=[a,b]", "tags=[a,b]"),
    ],
)  # fmt: skip
def test_dictionaries_of_python_are_translated(word, translated):
    """As a requeued agent of W&B sends them."""
    assert translate_python_dict(word) == translated


def test_the_run_directory_is_not_set_by_its_key():
    assert "run_dir=place: each run has its own. Fix: hydra.run.dir=DIR" in complaint("run_dir=place")


def test_how_labels_are_read_is_said_on_the_command_line():
    words = ("data.labels={Greeting: Others, Small Talk: null}", "data.unknown=drop", "data.inventory=esconv")
    assert composed(*words, "model=tiny_llama").data.labels == {"Greeting": "Others", "Small Talk": None}
    check(["stage=sft", *words, "data.too_long=drop", "data.overlap=allow"])
    assert "data.unknown=keep: not one of error, drop" in complaint("data.unknown=keep")
    assert "data.inventory=esconf: no such inventory; did you mean 'esconv'? Fix: use" in complaint(
        "data.inventory=esconf"
    )


def test_mappings_replace_what_was_given_before(tmp_path, monkeypatch):
    monkeypatch.setattr(ConfigDirs, "paths", ())
    free = [key.name for key in KEYS.values() if key.free]
    (tmp_path / "experiment").mkdir()
    written = OmegaConf.create({})
    for key in free:
        OmegaConf.update(written, key, {"own": 1})
    text = f"# @package _global_\n{OmegaConf.to_yaml(written)}"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    words = use_config_dirs(["experiment=mine", "model=tiny_llama"], str(tmp_path))

    def values(*more: str) -> list[Any]:
        cfg = composed(*words, *more)
        return [OmegaConf.select(cfg, key) for key in free]

    assert values() == [{"own": 1}] * len(free)
    assert values(*(f"{key}={{other: 2}}" for key in free)) == [{"other": 2}] * len(free)
    assert values(*(f"{key}={{}}" for key in free)) == [{}] * len(free)
    assert values(*(f"{key}.other=2" for key in free)) == [{"own": 1, "other": 2}] * len(free)
    assert composed("experiment=mine", "data={limit: {other: 2}}").data.limit == {"other": 2}


def test_proportions_on_the_command_line_are_the_whole_of_them():
    cfg = composed("data.proportions={train: 0.9, test: 0.1}")
    assert problems(cfg) == []
    assert config.typed(cfg).data.proportions == {"train": 0.9, "test": 0.1}
    assert config.typed(composed("data=jsonl", "data.path=x")).data.proportions["train"] == 0.8


def test_paths_are_checked_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "dialogues.jsonl").write_text("")
    words = ["stage=sft", "data=jsonl", "data.path=dialogues.jsonl"]
    with pytest.raises(UserError, match="the working directory is"):
        check(words)
    monkeypatch.chdir(tmp_path)
    check(words)


def test_checking_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(["stage=sft", "output_root=new/place", "cache_dir=cache"])
    with pytest.raises(UserError):
        check(["stage=sft", "seed=x"])
    assert os.listdir(tmp_path) == []


# --- sweeps


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model=tiny_llama,tiny_lama", "model=tiny_lama: no such option; did you mean 'tiny_llama'?"),
        ("model=choice(tiny_llama,tiny_lama)", "model=tiny_lama"),
        ("model=glob(tyni*)", "model=glob(tyni*) stands for no value"),
        ("+foo=1,2", "'foo'"),
        ("data.step_dialogues=range(4,-4,-2)", "data.step_dialogues=-2: has to be at least 1"),
        ("optimizer.lr=1e-4,fast", "optimizer.lr=fast"),
        ("data.path=/absent1,/absent2", "/absent2: no such file"),
    ],
)
def test_every_value_of_a_sweep_is_checked(word, message):
    assert message in complaint(word, multirun=True)


def test_sweeps_that_are_right():
    words = ["seed=range(1,4)", "model=glob(tiny_*)", "model.name='a,b','c d'", "data.limit={test: 1},{test: 2}"]
    check(["stage=sft", *words, "tags=[a],[b,c]"], multirun=True)
    drawn = ["optimizer.lr=tag(log,interval(1e-5,1e-3))", "hydra/sweeper=bayes"]
    check(["stage=sft", *drawn, "optimize_metric=val/loss", "hydra.sweeper.direction=minimize"], multirun=True)
    assert "nothing to look for" in complaint(*drawn, multirun=True)


def test_ranges_need_a_sweeper_that_draws_from_them():
    word = "optimizer.lr=interval(-1.0,1e-3)"
    assert "add hydra/sweeper=bayes" in complaint(word, multirun=True)
    assert "optimizer.lr=-1.0: has to be at least 0" in complaint(word, "hydra/sweeper=bayes", multirun=True)
    assert "did you mean" in complaint("hydra/sweeper=bayes", "hydra.sweeper.n_trial=2", multirun=True)
    words = ("hydra/sweeper=bayes", "hydra.sweeper.n_trials=2")
    assert "hydra.sweeper" not in complaint(*words, "optimizer.lr=x", multirun=True)


def test_the_sweep_of_an_experiment_is_checked_too():
    params = {"model": "tiny_llama,tiny_lama", "adapter": "lora", "sede": "1", "seed": "1,x"}
    words = [
        "experiment=base_models",
        "optimize_metric=null",
        *(f"++hydra.sweeper.params.{key}='{value}'" for key, value in params.items()),
    ]
    found = complaint(*words, multirun=True)
    assert "3 things are wrong" in found
    for message in ("did you mean 'tiny_llama'?", "did you mean 'seed'?", "seed: Value 'x'"):
        assert message in found
    # What the command line names takes its place, and without -m it does not matter.
    assert complaint(*words, "model=tiny_qwen2", "seed=2,3", multirun=True).startswith("unknown config key 'sede'")
    check(words)
    assert "stand without hydra.sweeper.params" in complaint("hydra.sweeper.params.seed=1,2", multirun=True)


def test_a_sweep_needs_a_multirun():
    for word in ("seed=1,2", "seed=range(3)", "model=glob(tiny*)"):
        assert "add -m" in complaint(word)


# --- help


def test_help_shows_stages_groups_and_commands():
    text = help_text()
    for name, doc in config.STAGES.items():
        assert name in text
        assert doc in text
    for group, options in groups().items():
        assert group == "stage" or all(option in text for option in options), group
    commands = [line.split("run.py ")[1].split() for line in text.splitlines() if line.startswith("  python run.py")]
    assert len(commands) == 10
    for words in commands:
        arguments = [word.replace("DIR", "/").replace("FILE", __file__) for word in words if word != "-m"]
        check(arguments, multirun="-m" in words)


@pytest.mark.parametrize("group", sorted(groups()))
def test_help_on_a_group_shows_options_with_docs_and_keys(group):
    lines = help_text([group]).splitlines()
    for option in groups()[group]:
        assert any(line.split()[:1] == [option] and len(line.split()) > 2 for line in lines), option
    for key in KEYS.values():
        if key.name.startswith(f"{group}."):
            assert any(line.split()[:1] == [key.name] for line in lines), key.name
            assert any(key.doc in line for line in lines), key.name


def test_help_on_other_words():
    assert "peak learning rate" in help_text(["optimizer"])
    assert "greedy" in help_text(["evaluate.generation.temperature"])
    with pytest.raises(UserError, match="did you mean 'model'"):
        help_text(["modle"])


def test_help_fits_a_screen():
    for width in (60, 100):
        for topics in ([], ["evaluate"], ["llm"], ["data"]):
            whole, broken = help_text(topics), help_text(topics, width)
            assert broken.split() == whole.split()
            wide = [line for line in broken.splitlines() if len(line) > width]
            assert all(line.startswith("  python run.py ") or len(line.split()) < 3 for line in wide), wide
    lines = help_text([], 100).splitlines()
    assert "  dashboard           lay out the comparison of a W&B project's runs as a workspace" in lines
    (number,) = (number for number, line in enumerate(lines) if line.startswith("  data        alpaca"))
    assert len(lines[number + 1]) - len(lines[number + 1].lstrip()) == 14


def test_help_on_a_stage_begins_with_it():
    lines = help_text(["evaluate"]).splitlines()
    assert lines[0] == f"stage=evaluate  {config.STAGES['evaluate']}"
    assert "# @package _global_" not in lines


def test_help_shows_what_a_run_would_have():
    def line(words: list[str], key: str) -> str:
        return next(line.strip() for line in help_text(words).splitlines() if line.startswith(f"  {key} "))

    assert line(["pipeline"], "pipeline.stages") == "pipeline.stages  (list[str]; default [search, sft, cso])"
    assert line(["data"], "data.path") == "data.path  (str | null; default null)"
    assert line(["data=jsonl"], "data.path") == "data.path  (str | null; required)"
    assert "default float32;" in line(["model.dtype", "model=tiny_llama"], "model.dtype")
    assert "default 10)" in line(["adapter.layers", "stage=reward"], "adapter.layers")
    assert line(["logger.extra"], "logger.extra").startswith("logger.extra  (dict[str, Any]; default {})")
    assert len(line(["inventory"], "inventory.strategies")) < 200


def test_help_on_an_option_shows_its_file():
    text = help_text(["tiny_llama"])
    assert text.startswith("model=tiny_llama  Random llama of two layers, for tests and dry runs.\n")
    assert "    hidden_size: 64" in text
    both = help_text(["reward"])  # a group, keys, a stage and an experiment
    assert {"reward=...", "stage=reward", "experiment=reward"} <= {line.split("  ")[0] for line in both.splitlines()}


def test_config_survives_yaml():
    cfg = config.typed(composed("model=tiny_llama"))
    again = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    assert config.typed(again) == cfg


@pytest.mark.parametrize("words", [["stage=cso"], ["stage=reward"], ["stage=sft", "data.side=seeker"]])
def test_last_replies_are_for_the_trainings_that_have_them(words):
    assert "data.loss=last_reply: it is for sft of a supporter" in complaint(*words, "data.loss=last_reply")


@pytest.mark.parametrize("word", ["data.label_weight=2", "data.strategy_weights={Question: 2}"])
def test_a_seeker_has_nothing_to_weigh(word):
    key = word.partition("=")[0]
    assert f"{key}: a seeker's turns have no strategy" in complaint("stage=sft", "data.side=seeker", word)


def test_steps_of_a_pipeline():
    for stages, message in {
        "[cso,sft]": "choose of reward, extend, classifier, sft, .*search, extra_sft, cso, each once, cso as the last",
        "[sft,sft]": "each once",
        "[judge]": "choose of reward",
        "[search,seeker]": "what seeker trains plays in a search. Fix: name search after it",
        "[seeker,cso]": "Fix: name search after it",
        "[extra_sft]": r"goes on from sft, .*Fix: \[sft,extra_sft\] with objective.updates=NUMBER",
        "[extend,sft,cso]": "extend leaves no pairs. Fix: leave search and cso out, or extend",
        "[sft,extend]": "sft is done without extend. Fix: name extend before it",
        "[sft,classifier]": "sft is done without classifier",
        "[sft,reward,search]": "llm.judge.client=local: .* Fix: llm.judge.client=reward",
    }.items():
        assert re.search(message, complaint("stage=pipeline", f"pipeline.stages={stages}"))
    words = ["stage=pipeline", "llm=policy", "llm.supporter.checkpoint=null"]
    assert check([*words, "pipeline.stages=[sft,seeker,search,cso]"])
    assert "llm.strategist.client=policy needs a trained supporter" in complaint(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "search.seeds=null: rounds share the seeds. Fix: search.seeds=NUMBER, 3 at least"),
        (["search.seeds=2"], "search.seeds=2: 3 rounds share them, one each at least. Fix: search.seeds=3"),
        (["search.seeds=3", "objective.updates=2"], "objective.updates=2: 3 rounds share them"),
        (["search.seeds=3", "pipeline.stages=[reward,search,sft]"], "pipeline.rounds=3: rounds search with what was"),
        (
            ["search.seeds=3", "llm.supporter.checkpoint=.", "llm.strategist.checkpoint=."],
            "pipeline.rounds=3: no role of the search is played by the policy of the round before. Fix: llm=policy",
        ),
        (["search.seeds=3", "pipeline.rounds=0"], "pipeline.rounds=0: has to be at least 1"),
    ],
)
def test_rounds_that_cannot_go_on_from_each_other(words, message):
    assert message in complaint("stage=pipeline", "pairs=rounds", *words)


def test_three_rounds_are_a_pipeline():
    assert check(["stage=pipeline", "pairs=rounds", "search.seeds=3"])
