"""What the benchmarks share: the embedded model and the sample corpus as a data module."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from esc_lab.config import DataConfig, PromptConfig
from esc_lab.config.evaluate import EvaluateConfig
from esc_lab.config.model import ModelConfig
from esc_lab.config.reward import RewardConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import load_inventory
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.training.datamodule import ESCDataModule

CONF = Path(__file__).parents[1] / "conf"


def smollm2(dtype: str = "bfloat16") -> ModelConfig:
    """Settings of the embedded SmolLM2."""
    file = OmegaConf.load(CONF / "model" / "smollm2_135m.yaml")
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), file, {"dtype": dtype}))
    assert isinstance(settings, ModelConfig)
    return settings


def reward_settings() -> RewardConfig:
    """Those of a reward model as `conf/reward/default.yaml` has them."""
    file = OmegaConf.load(CONF / "reward" / "default.yaml")
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardConfig), file))
    assert isinstance(settings, RewardConfig)
    return settings


def load_smollm2(cache: Path, dtype: str) -> tuple[ModelConfig, LoadedModel]:
    settings = smollm2(dtype)
    return settings, load_model(settings, cache)


def sample_module(loaded: LoadedModel, row_tokens: int) -> ESCDataModule:
    """The sample corpus under the `cso` template."""
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    data = DataConfig(name="sample", path=None, format="jsonl", proportions=shares, row_tokens=row_tokens)
    splits = read_splits(data, "esconv", ReadReport())
    inventory = load_inventory("esconv")
    return ESCDataModule(splits, loaded.encoder, inventory, data=data, prompt=PromptConfig(), evaluate=EvaluateConfig())
