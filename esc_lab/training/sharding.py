"""FSDP2 as a Lightning strategy: weights, gradients and optimizer state in parts on all processes, and checkpoints."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from esc_lab.errors import UserError
from esc_lab.models.sources import first_line
from esc_lab.runs.layout import SHARDS

# What torch describes a checkpoint with, beside its classes in `torch.distributed.checkpoint.metadata`.
_DESCRIBED = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}


class _DescriptionUnpickler(pickle.Unpickler):
    """Of the pickle that describes a checkpoint: torch's own words for it alone, since others could be any code."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.startswith("torch") or module == "pathlib" else None
        own = module == "torch.distributed.checkpoint.metadata" and isinstance(found, type)
        if own or (module, name) in _DESCRIBED or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class DescriptionReader(FileSystemReader):
    """torch's, which would load any pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path, ".metadata")
        try:
            with path.open("rb") as file:
                metadata: Metadata = _DescriptionUnpickler(file).load()
        except pickle.UnpicklingError as error:
            fix = "go on from a checkpoint that you trust, or start anew with resume=null"
            raise UserError(f"no description of a checkpoint: {error}", where=str(path), fix=fix) from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """torch's, which would load any pickle that stands for a number or a name."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        torch.load(value, weights_only=True)  # it raises before torch's own takes the same bytes
        value.seek(0)
        super().load_bytes(read_item, value)


def _load(state: dict[str, Any], shards: Path) -> None:
    load(state, storage_reader=DescriptionReader(shards), planner=_Planner())


class ShardedStrategy(ModelParallelStrategy):
    """Every process has a part of the model, and rows of its own of each step.

    A checkpoint is a file as of other strategies, in which `shards` names the folder beside it that holds the trained
    weights and the optimizer's state, in parts that any number of processes can load. The file is written after the
    folder, so that it never names one that is not whole.
    """

    @property
    def _module(self) -> torch.nn.Module:
        assert self.model is not None
        return self.model

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process' parts of the trained weights."""
        return get_model_state_dict(self._module, options=StateDictOptions(ignore_frozen_params=True, cpu_offload=True))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        suffixes = [folder.suffix[1:] for folder in path.parent.glob(f"{path.name}.*")]
        earlier = [int(suffix) for suffix in suffixes if suffix.isdigit()]
        shards = path.with_name(self.broadcast(f"{path.name}.{max(earlier, default=0) + 1}"))
        state = {"state_dict": checkpoint.pop("state_dict"), "optimizer_states": checkpoint.pop("optimizer_states", [])}
        try:
            save(state, checkpoint_id=shards)
        except CheckpointException as error:
            rank, reason = next(iter(error.failures.items()))
            fix = "make room there, or choose another output_root"
            message = f"process {rank} cannot write its part of the checkpoint: {first_line(reason[0])}"
            raise UserError(message, where=str(shards), fix=fix) from error
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint({**checkpoint, SHARDS: shards.name}, path)
            for number in earlier:
                shutil.rmtree(path.with_name(f"{path.name}.{number}"), ignore_errors=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All of a checkpoint, whose parts go where they belong.

        Raises:
            UserError: it was written by another strategy.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if SHARDS not in checkpoint:
            fix = "go on with the strategy that it was written with, or start anew with resume=null"
            raise UserError("it was not written by trainer.strategy=fsdp2", where=str(path), fix=fix)
        self.load_weights(path)
        (optimizer,) = self.optimizers
        state = {"optimizer_states": [get_optimizer_state_dict(self._module, optimizer)]}
        _load(state, path.with_name(checkpoint[SHARDS]))
        set_optimizer_state_dict(self._module, optimizer, state["optimizer_states"][0])
        return checkpoint

    def load_weights(self, path: Path) -> None:
        """The trained weights of a checkpoint."""
        shards = torch.load(path, map_location="cpu", weights_only=True)[SHARDS]
        state = {"state_dict": get_model_state_dict(self._module, options=StateDictOptions(ignore_frozen_params=True))}
        _load(state, path.with_name(shards))
        set_model_state_dict(self._module, state["state_dict"], options=StateDictOptions(strict=False))
