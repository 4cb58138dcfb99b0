"""Client that answers with a model loaded here. Requests that wait at the same time are answered together.

One thread runs the model, so the event loop stays free; roles with the same base model share both, each with its own
adapter (`model_worker`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from esc_lab.artifacts import fingerprint
from esc_lab.config import Config
from esc_lab.config.model import ModelConfig
from esc_lab.data.dialogue import Reply, Speaker, Turn
from esc_lab.data.strategies import build_inventory
from esc_lab.models.checkpoint_files import find_checkpoint
from esc_lab.models.engine import EngineLimits
from esc_lab.models.forward import base_model
from esc_lab.models.load import LoadedModel, load_model, model_identity
from esc_lab.models.log_probs import score_rows
from esc_lab.models.row_adapters import BASE, RowAdapters, fingerprint_adapter
from esc_lab.models.slots import choose_cache_tokens, choose_working_tokens
from esc_lab.prompts import Prompt, SeekerProfile
from esc_lab.prompts.trained import SupporterPrompts, TrainedPrompts, read_trained_prompts
from esc_lab.search.model_worker import Job, ModelWorker
from esc_lab.search.requests import Answer, Request
from esc_lab.search.reward_reader import RewardReader
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens import ChatEncoder, TokenSequence, encode_labels, pack_rows

log = logging.getLogger(__name__)


def build_client(cfg: Config, role: str, shared: dict[str, Any]) -> LocalClient:
    """The client of a role with a model that is loaded here: `llm.local.model`, or the role's own.

    Supporters and seekers that were trained here are asked as in their training.
    """
    played = getattr(cfg.llm, role)
    side: Speaker | None = "seeker" if role == "seeker" else "supporter" if role == "supporter" else None
    if side is None or not played.checkpoint:
        return play_model(cfg, role, shared)
    checkpoint, where = Path(played.checkpoint), f"llm.{role}.checkpoint"
    return play_model(cfg, role, shared, read_trained_prompts(checkpoint, side, build_inventory(cfg.inventory), where))


def play_model(cfg: Config, role: str, shared: dict[str, Any], trained: TrainedPrompts | None = None) -> LocalClient:
    """The client of a role by its `model` and `checkpoint`; each base model is loaded once, into `shared`.

    Args:
        trained: how it is asked, if as in its training.

    Raises:
        UserError: the model or the checkpoint cannot be loaded, they do not belong together, or the labels of a
            supporter's strategies cannot be read off a prefix.
    """
    model, played = choose_model(cfg, role), getattr(cfg.llm, role)
    checkpoint = Path(played.checkpoint) if played.checkpoint else None
    adapter, weights = find_checkpoint(model, checkpoint)
    base = load_base(cfg, model, checkpoint if weights else None, shared)
    if checkpoint is None or not (adapter or trained):
        return base
    identity: dict[str, Any] = {"adapter": fingerprint_adapter(adapter)} if adapter else {}
    if trained:
        identity["asked"] = trained.record()
        _check_labels(base.encoder, trained)
    return base.share(base.adapters.load(adapter) if adapter else BASE, f"{model.name} ({checkpoint.name})", identity)


def choose_model(cfg: Config, role: str) -> ModelConfig:
    """The base model of a role: its own, else that of all."""
    path, model = getattr(cfg.llm, role).model, cfg.llm.local.model
    if not path:
        return model
    return replace(model, name=Path(path).name, source="directory", path=path, revision=None)


def _check_labels(encoder: ChatEncoder, trained: TrainedPrompts) -> None:
    """Whether the labels that a supporter chooses from, or is given, have tokens of their own."""
    if isinstance(trained, SupporterPrompts) and trained.layout.chooses_strategy:
        messages, _ = trained.ask(SeekerProfile(""), (Turn("seeker", Reply("...")),), None)
        encode_labels(encoder, trained.inventory, Prompt(messages))


def load_base(cfg: Config, model: ModelConfig, checkpoint: Path | None, shared: dict[str, Any]) -> LocalClient:
    """The client of a base model, or of a checkpoint's whole model, which is loaded once, into `shared`."""
    key = f"local {fingerprint([asdict(model), str(checkpoint)])}"
    if key not in shared:
        loaded = load_model(model, Path(cfg.cache_dir), checkpoint=checkpoint)
        name = f"{model.name} ({checkpoint.name})" if checkpoint else model.name
        identity: dict[str, Any] = {"dtype": model.dtype, **model_identity(loaded.model)}
        if cfg.llm.local.repeatable:
            _widen(loaded.model)
        elif model.dtype == "float32":
            identity["repeatable"] = False
        kept = cfg.llm.local.cache_tokens or choose_cache_tokens(loaded.model, EngineLimits.cache_tokens)
        batch = cfg.llm.local.batch
        working = choose_working_tokens(loaded.model, batch, EngineLimits.working_tokens)
        limits = EngineLimits(batch, working_tokens=working, cache_tokens=kept)
        shared[key] = LocalClient(loaded, name, identity=identity, limits=limits)
    client: LocalClient = shared[key]
    return client


def _widen(model: Any) -> None:
    """Have a float32 model compute in float64.

    How sums are rounded depends on what is computed together. Answers are rounded too, but of many values some lie so
    close to the middle between two that float32 decides to which side they go; in float64 there are hardly any.
    """
    if (
        model.dtype == torch.float32
        and model.device.type in ("cpu", "cuda")
        and not getattr(model, "is_quantized", False)
    ):
        model.double()


class LocalClient:
    """Answers requests with a loaded model; see `search.requests.Client`.

    Answers do not depend on what is asked at the same time but for the model's rounding, which in half precision can
    change a reply.

    Args:
        loaded: is put into evaluation mode and must not change while the client is open.
        name: of the model, for answers and identity.
        identity: what else answers depend on (revision, checkpoint ...).

    Attributes:
        adapters: of the model.
        encoder: its chat encoder.
        context_tokens: its longest context.
        hidden_size: of its states.
    """

    scores = True
    retries: Mapping[str, int] = {}

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        *,
        identity: Mapping[str, Any] | None = None,
        limits: EngineLimits | None = None,
    ) -> None:
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        self.identity: Mapping[str, Any] = {"kind": "local", "model": name, "dtype": dtype, **(identity or {})}
        self._name, self._adapter = name, BASE
        self._reader: RewardReader | None = None
        self.encoder, self.context_tokens = loaded.encoder, loaded.context_tokens
        self.hidden_size: int = base_model(loaded.model).config.get_text_config().hidden_size
        self.adapters = RowAdapters(base_model(loaded.model))
        self._worker = ModelWorker(loaded, name, limits, self.adapters)

    def share(
        self, adapter: int, name: str, identity: Mapping[str, Any], reader: RewardReader | None = None
    ) -> LocalClient:
        """A client with the same model and thread, and an adapter.

        Args:
            adapter: its number in `adapters`.
            identity: what its answers depend on beside the base model.
            reader: of a reward model, which answers each request with the two log-probabilities of its reply.
        """
        other = copy(self)
        other._name, other._adapter, other._reader = name, adapter, reader
        other.identity = {**self.identity, "model": name, **identity}
        return other

    @property
    def specials_removed(self) -> int:
        """Special tokens of the tokenizer that were taken out of messages where they were spelled out."""
        return self._worker.specials_removed

    def score(self, sequences: Sequence[TokenSequence], row_tokens: int) -> Iterator[tuple[Any, FloatArray]]:
        """Key and token log-probabilities of each reply by the base model, once the client is closed."""
        self.adapters.use([])
        return score_rows(self._worker.model, pack_rows([sequences], row_tokens))

    async def answer(self, request: Request) -> Answer:
        """See `Client`. An error of the model (out of memory ...) is raised by every request under way.

        Raises:
            TooLongError: the prompt is too long.
            UserError: it is longer than the client has room for.
            RuntimeError: the client is closed.
        """
        return await self._worker.answer(Job(request, Future(), self._name, self._adapter, self._reader))

    async def close(self) -> None:
        """End the thread. Requests that are not answered yet, of all that share it, are cancelled."""
        await self._worker.close()
