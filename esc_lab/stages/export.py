"""Stage `export`: a trained model as a plain directory, or dialogues as files of other tools; both to the hub."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esc_lab.artifacts import READ_ERRORS, make_readable, write_atomic
from esc_lab.comparison.evaluation_card import describe_evaluation
from esc_lab.config import Config
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.judging.safety_card import describe_safety
from esc_lab.prompts import build_layout
from esc_lab.prompts.trained import read_template
from esc_lab.runs.environment import git_commit
from esc_lab.runs.layout import METRICS, Settings, find_run, read_config
from esc_lab.terminal import print_table
from esc_lab.training.exports import data_files
from esc_lab.training.exports.chats import build_chats
from esc_lab.training.exports.data_card import dataset_name, write_data_card
from esc_lab.training.exports.hub import check_repository, push_directory
from esc_lab.training.model_card import system_prompt, write_card

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from esc_lab.models.load import LoadedModel

log = logging.getLogger(__name__)
# What the kinds of records are, of which each split has so many.
KIND_NOTES = {
    "sft": "conversations to fine-tune on, one for each reply of a supporter (trl, datasets) or for each dialogue.",
    "preference": "pairs of a preferred and a rejected reply, with the messages before them.",
    data_files.DIALOGUES: "whole dialogues, with all that esc-lab knows of them.",
}


def run(cfg: Config) -> dict[str, float]:
    """Write the model or the dialogues, whole or not at all, and push them to the hub if asked to.

    Raises:
        UserError: the target holds something already, the hub will not take it, or what the writing raises.
    """
    target = _target(cfg)
    repository = check_repository(cfg.export, "dataset" if cfg.export.data else "model") if cfg.export.push else None
    write = _write_data if cfg.export.data else _write_model
    with _whole_directory(target) as directory:
        metrics = write(cfg, directory)
    log.info("wrote %s", target)
    if repository:
        push_directory(repository, target)
    return metrics


def _target(cfg: Config) -> Path:
    name = "data" if cfg.export.data else "model"
    target = Path(cfg.export.directory) if cfg.export.directory else Path(cfg.run_dir) / name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("there is something already", where=str(target), fix="choose another export.directory")
    return target


@contextmanager
def _whole_directory(target: Path) -> Iterator[Path]:
    """Where to write a directory that appears at the end of the block; after an error nothing is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        make_readable(temporary)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_data(cfg: Config, directory: Path) -> dict[str, float]:
    """Write the dialogues of all splits as chats, with a data card."""
    inventory, report, config = build_inventory(cfg.inventory), ReadReport(), asdict(cfg)
    splits = {name: dialogues for name, dialogues in read_splits(cfg.data, inventory, report, cfg.config_dirs).items()
              if dialogues}  # fmt: skip
    log.info("%s: %s", cfg.data.name, report.line())
    system, shared = system_prompt(config) if cfg.export.system else ("", True)
    if not shared:
        fix = "prompt=cso, or another layout in which the model chooses the strategy; or leave export.system out"
        raise UserError("the system message differs from prompt to prompt", where="export.system=true", fix=fix)
    lost = Counter[str]()
    wording = build_layout(read_template(config)).wording
    chats = {split: build_chats(dialogues, wording, system, lost) for split, dialogues in splits.items()}
    if cfg.export.data == "datasets":
        counts = data_files.write_datasets(chats, directory, lost, splits, inventory)
    elif cfg.export.data == "llama_factory":
        counts = data_files.write_llama_factory(chats, directory, lost, dataset_name(cfg.data.name))
    else:
        write = {"trl": data_files.write_trl, "openai": data_files.write_openai}[str(cfg.export.data)]
        counts = write(chats, directory, lost)
    if not any(kind in data_files.KINDS for kind, _ in counts):
        fix = "give dialogues in which a supporter answers a seeker"
        raise UserError("no supporter turn answers a seeker: nothing to write", where="data", fix=fix)
    notes = {**report.changes(), **lost}
    write_atomic(directory / "README.md", write_data_card(cfg, splits, counts, notes, git_commit() or ""))
    rows = _count_rows(counts, [*splits])
    print_table("Records", ("kind", *splits), rows, notes=[f"kind {kind}: {KIND_NOTES[kind]}" for kind, *_ in rows])
    for kind, count in lost.items():
        if count:
            log.info("left out or changed: %d %s", count, kind)
    return {f"export/{kind}_{split}": float(count) for (kind, split), count in counts.items()}


def _count_rows(counts: data_files.Counts, splits: list[str]) -> list[tuple[str, ...]]:
    kinds = dict.fromkeys(kind for kind, _ in counts)
    return [(kind, *(f"{counts.get((kind, split), 0)}" for split in splits)) for kind in kinds]


def _write_model(cfg: Config, directory: Path) -> dict[str, float]:
    """Write the model, an adapter merged into it.

    Its chat template is that of the training, with the training's system message as the default where all prompts had
    the same, and it generates greedily: what transformers makes of a chat is what an evaluation of the run made of it.

    Raises:
        UserError: the weights are quantised, the training run is gone, `export.safety` is no safety report of it, or
            `export.gguf` cannot be had of such a model.
    """
    from peft import PeftModel

    from esc_lab.models.default_system import add_default_system
    from esc_lab.models.load import load_model
    from esc_lab.training.exports.gguf_file import write_gguf
    from esc_lab.training.exports.serving import GGUF, MODELFILE, ServedModel, describe_serving, write_modelfile
    from esc_lab.training.trainer import prepare

    prepare(cfg)
    assert cfg.checkpoint is not None  # checked with the configuration
    source = Path(cfg.checkpoint)
    if cfg.model.quantization:
        raise UserError("an adapter cannot be merged into quantised weights", fix="set model.quantization=null")
    training, config = _read_training(source)
    safety = describe_safety(Path(cfg.export.safety) if cfg.export.safety else None, training)
    settings = replace(cfg.model, chat_template=config["model"]["chat_template"])
    if settings.dtype != config["model"]["dtype"]:
        log.warning("model.dtype=%s, trained in %s: replies may differ", settings.dtype, config["model"]["dtype"])
    loaded = load_model(settings, Path(cfg.cache_dir), checkpoint=source)
    model: Any = loaded.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    tokenizer = loaded.encoder.tokenizer
    text, shared = system_prompt(config)
    generation = _generation(loaded, config)
    served = ServedModel(text if shared else "", config["data"]["row_tokens"], generation.max_new_tokens)
    modelfile = write_modelfile(loaded.encoder, served)
    if shared:
        tokenizer.chat_template = add_default_system(loaded.encoder, text)
    model.generation_config = generation
    card = write_card(
        config, _read_metrics(training / METRICS), run=training, adapter=False, licence=cfg.export.licence
    )
    evaluation = describe_evaluation(training)
    serving = describe_serving(served, modelfile=modelfile is not None, gguf=cfg.export.gguf)
    if cfg.export.gguf:
        write_gguf(model, loaded.encoder, directory / GGUF)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_atomic(directory / "README.md", f"{card}\n\n{evaluation}\n\n{serving}\n\n{safety}")
    if modelfile:
        write_atomic(directory / MODELFILE, modelfile)
    return {"export/parameters": float(sum(parameter.numel() for parameter in model.parameters()))}


def _read_training(checkpoint: Path) -> tuple[Path, Settings]:
    """The run that trained the weights, and its configuration."""
    run = find_run(checkpoint)
    if run is None:
        fix = "name the run directory itself, with its config.yaml: the card and the prompts come from there"
        raise UserError("the run that trained it is not there", where=str(checkpoint), fix=fix)
    try:
        config = read_config(run)
        return run, {**config, "model": {"chat_template": None, **config["model"]}}
    except READ_ERRORS as error:
        raise UserError(f"its config.yaml cannot be read: {error}", where=str(run), fix="copy the run again") from error


def _read_metrics(path: Path) -> dict[str, float]:
    """The metrics of a training; none of one that did not come to its end."""
    if not path.exists():
        return {}
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except READ_ERRORS as error:
        fix = "copy the run again, or delete the file: the card then shows no results"
        raise UserError(f"not the metrics of a run: {error}", where=str(path), fix=fix) from error


def _generation(loaded: LoadedModel, config: Settings) -> GenerationConfig:
    """Greedy generation to the end of the turn, without the penalties and draws that a base model may bring."""
    from transformers import GenerationConfig

    tokenizer = loaded.encoder.tokenizer
    stop = sorted(token for token in loaded.encoder.stop_tokens if token is not None)
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=config["evaluate"]["generation"]["max_new_tokens"],
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
