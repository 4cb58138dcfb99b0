"""The card of trained weights: where the data of a training come from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import typed
from esc_lab.training.model_card import write_card


def settings(*words: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return asdict(typed(compose("config", [*words, "model=tiny_llama"])))


@pytest.mark.parametrize("part", ["esc_pro", "esc_pro/train.jsonl"])
def test_data_of_a_search_have_the_name_and_licence_of_its_seeds(tmp_path: Path, part: str) -> None:
    search = tmp_path / "search"
    (search / "esc_pro").mkdir(parents=True)
    (search / "esc_pro/train.jsonl").touch()
    (search / "config.yaml").write_text(yaml.safe_dump(settings("stage=search", "data=sample")))
    training = settings("stage=cso", "data=jsonl", f"data.path={search}/{part}")
    card = write_card(training, {}, run=tmp_path / "training", adapter=True)
    assert "preference optimisation (cso), on what a search made of sample; licence of sample: Apache-2.0" in card
