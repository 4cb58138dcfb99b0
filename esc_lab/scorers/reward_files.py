"""Reward models made, saved and loaded: an adapter and a head as safetensors, and a note of what they belong to.

Only safetensors are read, and no code that ships with a model is run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from esc_lab.artifacts import READ_ERRORS, file_fingerprint, fingerprint, make_readable, remove_files, write_atomic
from esc_lab.config.model import ModelConfig
from esc_lab.config.reward import RewardConfig
from esc_lab.config.training import AdapterConfig
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.models.checkpoint_files import identify_base
from esc_lab.models.devices import find_device
from esc_lab.models.forward import base_model
from esc_lab.models.load import LoadedModel, add_adapter, load_model, save_adapter
from esc_lab.models.lora import load_lora
from esc_lab.models.shared_weights import share_weights
from esc_lab.models.sources import refuse_unreadable
from esc_lab.runs.layout import REWARD
from esc_lab.scorers.base_models import check_safetensors, describe_base, read_base
from esc_lab.scorers.conversations import WORDS, ConversationEncoder
from esc_lab.scorers.reward_model import Calibration, RewardHead, RewardModel
from esc_lab.tokens import ChatEncoder

NOTE, HEAD = "reward.json", "head.safetensors"


@dataclass(frozen=True)
class Note:
    """What `reward.json` says: of which base model and inventory it is, what it reads, and its calibration."""

    model: ModelConfig
    inventory: str
    strategies: tuple[str, ...]
    words: dict[str, str]
    strategy_text: bool
    history_tokens: int
    reply_tokens: int
    row_tokens: int
    calibration: Calibration
    strategy_share: float
    strategy_centers: dict[str, float]

    def conversations(self, encoder: ChatEncoder) -> ConversationEncoder:
        """How it reads conversations with the encoder of its base model."""
        return ConversationEncoder(encoder, self.words, self.strategy_text, self.history_tokens, self.reply_tokens)


def new_reward(
    loaded: LoadedModel,
    model: ModelConfig,
    adapter: AdapterConfig,
    settings: RewardConfig,
    words: dict[str, str],
    row_tokens: int,
) -> RewardModel:
    """An untrained reward model on a loaded base model, which gets a new adapter; all scores are 0, or likelihoods.

    Args:
        words: as of `ConversationEncoder`.
        row_tokens: budget of a packed row; a history leaves room in it for the replies that are compared after it.

    Raises:
        UserError: the adapter cannot be put on it, or the budget is too small.
    """
    row_tokens = min(row_tokens, loaded.context_tokens)
    replies = 1 + settings.foils + (settings.kinds.get("strategy", 0) > 0)
    history_tokens = row_tokens - replies * settings.reply_tokens
    if history_tokens <= 0:
        what = f"{replies} replies of {settings.reply_tokens} tokens leave no room for a history"
        fix = "raise it (and model.context_tokens), or lower reward.reply_tokens"
        raise UserError(what, where=f"data.row_tokens={row_tokens}", fix=fix)
    trained = add_adapter(loaded, adapter, model).model
    conversations = ConversationEncoder(
        loaded.encoder, words, settings.strategy_text, history_tokens, settings.reply_tokens
    )
    hidden = base_model(trained).config.get_text_config().hidden_size
    head = RewardHead(hidden, likelihood=settings.likelihood).to(base_model(trained).device)
    share = settings.strategy_share
    return RewardModel(trained, head, conversations, model.name, row_tokens, strategy_share=share)


def save_reward(reward: RewardModel, model: ModelConfig, inventory: Inventory, directory: Path) -> Path:
    """Write `reward/` into a directory: adapter, head, and the note that `load_reward` goes by."""
    target = directory / REWARD
    remove_files(target)
    save_adapter(reward.model, model, target)
    save_file({name: tensor.cpu().contiguous() for name, tensor in reward.head.state_dict().items()}, target / HEAD)
    read = reward.conversations
    note = Note(
        model, inventory.name, inventory.names, dict(read.words), read.strategy_text, read.history_tokens,
        read.reply_tokens, reward.row_tokens, reward.calibration, reward.strategy_share,
        dict(reward.strategy_centers),
    )  # fmt: skip
    write_atomic(target / NOTE, json.dumps({**asdict(note), "model": describe_base(model)}, indent=2))
    make_readable(target)
    return target


def load_reward(
    path: Path, inventory: Inventory, cache: Path, model: ModelConfig | None = None, *, beside: Any = None
) -> RewardModel:
    """A reward model in evaluation mode, on CUDA if there is any.

    Args:
        path: run directory of stage `reward`, or its `reward/`.
        inventory: whose strategies its replies follow.
        cache: directory of converted base models.
        model: the base model that it has to be of; None = whichever it is.
        beside: a model in this process whose weights it shares as far as they are the same.

    Raises:
        UserError: files are missing or broken, or it is of another inventory or base model.
    """
    directory, note = read_note(path, inventory, model)
    share = beside is not None and note.model.quantization is None
    loaded = load_model(note.model, cache, to_device=not share)
    base: Any = loaded.model
    if share:
        share_weights(base, beside)
        base.to(find_device())
    hidden = base.config.get_text_config().hidden_size
    trained = load_lora(base, directory).eval()
    return RewardModel(
        trained, load_head(directory, hidden).to(base.device), note.conversations(loaded.encoder),
        note.model.name, note.row_tokens, note.calibration, note.strategy_share, note.strategy_centers,
    )  # fmt: skip


def read_note(path: Path, inventory: Inventory, model: ModelConfig | None = None) -> tuple[Path, Note]:
    """The directory with a reward model's files, and its note; arguments and errors as of `load_reward`."""
    directory = path / REWARD if (path / REWARD).is_dir() else path
    if not (directory / NOTE).exists():
        raise UserError("no reward model in it", where=str(path), fix="name a run directory of stage=reward")
    for weights in ("adapter_model.safetensors", HEAD):
        check_safetensors(directory, weights)
    note = _read_note(directory / NOTE)
    if (note.inventory, note.strategies) != (inventory.name, inventory.names):
        what = (
            f"it is for the strategies {', '.join(note.strategies)} ({note.inventory}), not those of {inventory.name}"
        )
        raise UserError(what, where=str(directory), fix=f"inventory={note.inventory}, or train one for this inventory")
    if model is not None and identify_base(model) != identify_base(note.model):
        what = f"it was trained on {note.model.name} ({note.model.path}), not on {model.name} ({model.path})"
        raise UserError(what, where=str(directory), fix="choose the same model= as its training, or train one on this")
    return directory, note


def load_head(directory: Path, hidden: int) -> RewardHead:
    """The head in a directory of `read_note`, for hidden states of this size. Raises a UserError if it is broken."""
    with refuse_unreadable(str(directory)):
        weights = load_file(directory / HEAD)
        head = RewardHead(hidden, likelihood="ratio" in weights)
        head.load_state_dict(weights)
    return head


def identify_reward(path: Path) -> str:
    """What tells reward models apart: their weights, wherever they are; where they are gone, the path."""
    directory = path / REWARD if (path / REWARD).is_dir() else path
    files = [directory / name for name in (HEAD, "adapter_model.safetensors")]
    known = all(file.exists() for file in files)
    return fingerprint([file_fingerprint(file) for file in files]) if known else str(path.resolve())


def _read_note(file: Path) -> Note:
    try:
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        temperature, center = (float(read["calibration"][name]) for name in ("temperature", "center"))
        if not temperature > 0:
            raise ValueError(f"temperature {temperature:g}")
        words = {name: str(read["words"][name]) for name in WORDS}
        share = float(read.get("strategy_share", 0.0))
        if not 0 <= share <= 1:
            raise ValueError(f"strategy_share {share:g}")
        centers = {str(name): float(center) for name, center in read.get("strategy_centers", {}).items()}
        sizes = {name: int(read[name]) for name in ("history_tokens", "reply_tokens", "row_tokens")}
        if min(sizes.values()) < 1:
            raise ValueError(f"sizes {sizes}")
        return Note(
            read_base(read["model"], file), str(read["inventory"]), tuple(read["strategies"]), words,
            bool(read["strategy_text"]), **sizes, calibration=Calibration(temperature, center), strategy_share=share,
            strategy_centers=centers,
        )  # fmt: skip
    except READ_ERRORS as error:
        what = f"broken note: {type(error).__name__} {error}"
        raise UserError(what, where=str(file), fix="train the reward model again") from error
