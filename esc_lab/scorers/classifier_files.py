"""Strategy classifiers made, saved and loaded: on a base model of `model=`, or any that transformers can classify with.

Only safetensors are read, and no code that ships with a model is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from esc_lab.artifacts import READ_ERRORS, make_readable, remove_files, write_atomic
from esc_lab.config import Config
from esc_lab.config.model import ModelConfig
from esc_lab.config.training import AdapterConfig
from esc_lab.data.strategies import Inventory, UnknownStrategyError, build_inventory, normalize_label
from esc_lab.errors import UserError
from esc_lab.models.devices import find_device
from esc_lab.models.load import save_adapter
from esc_lab.models.lora import add_lora, load_lora
from esc_lab.models.sources import load_config, locate_model, refuse_unreadable
from esc_lab.runs.layout import CLASSIFIER
from esc_lab.scorers.auto_classifier import stored_classifier
from esc_lab.scorers.base_models import check_safetensors, describe_base, read_base
from esc_lab.scorers.classifier import StrategyClassifier
from esc_lab.seeds import derive_seed

log = logging.getLogger(__name__)
NOTE = "classifier.json"
_FOREIGN_REPLY_TOKENS = 256
_HEADS = ("score", "classifier")  # what transformers calls the layers that give the class scores


@dataclass(frozen=True)
class Note:
    """What `classifier.json` says; the classes are in the inventory's order."""

    model: ModelConfig
    inventory: str
    strategies: tuple[str, ...]
    reply_tokens: int
    accuracy: float | None


def new_classifier(
    model: ModelConfig, adapter: AdapterConfig, inventory: Inventory, cache: Path, *, reply_tokens: int, seed: int
) -> StrategyClassifier:
    """An untrained classifier on the CPU: base model, a head drawn with the seed, LoRA or all weights trainable.

    Raises:
        UserError: there is no such base model, it cannot classify, or a target module is unknown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "strategy classifier"))
        base, tokenizer = _base(model, inventory, cache)
        trainable = base.requires_grad_(True) if adapter.kind == "full" else add_lora(base, adapter, "SEQ_CLS", _HEADS)
    reply_tokens = min(reply_tokens, _longest(base, tokenizer))
    return StrategyClassifier(trainable, tokenizer, inventory, model.name, tuple(range(len(inventory))), reply_tokens)


def save_classifier(
    classifier: StrategyClassifier, model: ModelConfig, directory: Path, accuracy: float | None
) -> Path:
    """Write `classifier/` into a directory: safetensors, and the note that `load_classifier` goes by.

    Args:
        model: settings of the base model.
        accuracy: on held-out replies, in [0, 1]; None if there were none.
    """
    target = directory / CLASSIFIER
    remove_files(target)
    if isinstance(classifier.model, PeftModel):
        save_adapter(classifier.model, model, target)
    else:
        classifier.model.save_pretrained(str(target))
        classifier.tokenizer.save_pretrained(target)
    inventory = classifier.inventory
    note = Note(model, inventory.name, inventory.names, classifier.reply_tokens, accuracy)
    write_atomic(target / NOTE, json.dumps({**asdict(note), "model": describe_base(model)}, indent=2))
    make_readable(target)
    return target


def load_classifier(path: Path, inventory: Inventory, cache: Path) -> StrategyClassifier:
    """A classifier in evaluation mode, on CUDA if there is any.

    Args:
        path: run directory of stage `classifier`, its `classifier/`, or a directory with any sequence classification
            model of transformers and its tokenizer, whose `id2label` names each strategy of the inventory once, in any
            order and known spelling.
        cache: directory of converted base models.

    Raises:
        UserError: files are missing or broken, or the classes are not the strategies of the inventory.
    """
    directory = path / CLASSIFIER if (path / CLASSIFIER).is_dir() else path
    adapter = (directory / "adapter_config.json").exists()
    _check_files(directory, adapter=adapter)
    note = _read_note(directory / NOTE) if (directory / NOTE).exists() else None
    if note and (note.inventory, note.strategies) != (inventory.name, inventory.names):
        what = f"its classes are {', '.join(note.strategies)} ({note.inventory}), not those of {inventory.name}"
        raise UserError(what, where=str(directory), fix=f"inventory={note.inventory}, or train one for this inventory")
    if adapter:
        if note is None:
            fix = "name a run directory of stage=classifier"
            raise UserError(f"an adapter without {NOTE}: its base model is unknown", where=str(directory), fix=fix)
        base, tokenizer = _base(note.model, inventory, cache)
        model = load_lora(base, directory)
    else:
        dtype = note.model.dtype if note else "float32"
        model, tokenizer = _classifier_model(str(directory), None, dtype, where=str(directory))
    model.to(find_device()).eval()
    columns, longest = _columns(model.config.id2label, inventory, directory), _longest(model, tokenizer)
    if note is None:
        reply_tokens = min(_FOREIGN_REPLY_TOKENS, longest)
        return StrategyClassifier(model, tokenizer, inventory, directory.name, columns, reply_tokens)
    name, reply_tokens = note.model.name, min(note.reply_tokens, longest)
    return StrategyClassifier(model, tokenizer, inventory, name, columns, reply_tokens, note.accuracy)


def load_judge(cfg: Config, choice: str | None, train: Callable[[Config, Path], object]) -> StrategyClassifier | None:
    """The classifier that judges adherence.

    Args:
        choice: its directory, `auto`, or None: nobody judges.
        train: see `stored_classifier`.

    Raises:
        UserError: what `stored_classifier` and `load_classifier` raise.
    """
    if choice is None:
        return None
    path = stored_classifier(cfg, train) if choice == "auto" else Path(choice)
    classifier = load_classifier(path, build_inventory(cfg.inventory), Path(cfg.cache_dir))
    accuracy = "unknown" if classifier.accuracy is None else f"{classifier.accuracy:.3f}"
    log.info("adherence is judged by %s, accuracy on held-out replies %s", path, accuracy)
    return classifier


def _base(model: ModelConfig, inventory: Inventory, cache: Path) -> tuple[Any, Any]:
    """The base model with a new head in float32, and its tokenizer."""
    where = f"model.path={model.path}"
    location = locate_model(model, cache)
    base, tokenizer = _classifier_model(location, model.revision, model.dtype, where=where, classes=inventory.names)
    for name in _HEADS:
        head = getattr(base, name, None)
        if head is not None:
            # In bfloat16 small updates of the head would be lost and close scores would be equal.
            head.float().register_forward_pre_hook(_to_float)
    return base, tokenizer


def _to_float(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])


def _classifier_model(
    location: str, revision: str | None, dtype: str, *, where: str, classes: tuple[str, ...] | None = None
) -> tuple[Any, Any]:
    """A model and its tokenizer, with a token for padding; `classes` are those of a head that the weights lack."""
    labels = (
        {"id2label": dict(enumerate(classes)), "label2id": {c: n for n, c in enumerate(classes)}} if classes else {}
    )
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with refuse_unreadable(where):
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            location, config=load_config(location, **labels, **options), dtype=getattr(torch, dtype),
            use_safetensors=True, output_loading_info=True, **options,
        )  # fmt: skip
    missing = [name for name in info["missing_keys"] if not (classes and name.startswith(_HEADS))]
    if missing:
        raise UserError(f"weights are missing: {', '.join(sorted(missing)[:3])}", where=where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError("its tokenizer has neither a padding nor an end-of-text token", where=where)
    # With it a decoder finds the last token of each reply.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    return model, tokenizer


def _check_files(directory: Path, *, adapter: bool) -> None:
    if not adapter and not (directory / "config.json").exists():
        fix = "name a run directory of stage=classifier, or that of a sequence classification model"
        raise UserError("no classifier in it", where=str(directory), fix=fix)
    check_safetensors(directory, "adapter_model.safetensors" if adapter else "model*.safetensors")


def _read_note(file: Path) -> Note:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        model = read_base(read["model"], file)
        accuracy = None if read["accuracy"] is None else float(read["accuracy"])
        return Note(model, read["inventory"], tuple(read["strategies"]), int(read["reply_tokens"]), accuracy)
    except READ_ERRORS as error:
        what = f"broken note: {type(error).__name__} {error}"
        raise UserError(what, where=str(file), fix="train the classifier again") from error


def _columns(id2label: dict[int, str], inventory: Inventory, directory: Path) -> tuple[int, ...]:
    """For every strategy its column in the output of a model with these class names."""
    columns: dict[str, int] = {}
    where = f"{directory}, id2label"
    for column, label in id2label.items():
        try:
            name = normalize_label(str(label), inventory)
        except UnknownStrategyError as error:
            raise UserError(str(error), where=where, fix="choose the inventory that it was trained on") from None
        if name in columns:
            raise UserError(f"two classes are '{name}'", where=where, fix="name each strategy once")
        columns[name] = int(column)
    absent = [name for name in inventory.names if name not in columns]
    if absent:
        what = f"no class for {', '.join(absent)}: replies with these strategies would all be judged wrong"
        raise UserError(what, where=where, fix="use a classifier of the whole inventory")
    return tuple(columns[name] for name in inventory.names)


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model can read at once."""
    return min(int(model.config.get_text_config().max_position_embeddings), int(tokenizer.model_max_length))
