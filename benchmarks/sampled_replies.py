"""What several samples per decision cost against as many evaluations with one each.

SmolLM2 answers decisions of the sample corpus and scores its strategies and the given replies, as stage `evaluate` does
(without attention). Loading the model does not count; each further run would load it again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _common import load_smollm2, sample_module

from esc_lab.config.evaluate import EvaluateConfig, GenerationConfig, SRAConfig
from esc_lab.config.prompt import PromptConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.module import EvaluationModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--decisions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=40, help="length of a reply")
    parser.add_argument("--together", type=int, default=16, help="replies decoded together")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    _, loaded = load_smollm2(Path(".cache"), options.dtype)
    data = sample_module(loaded, row_tokens=2048)
    data.setup("test")
    decisions = [decision for group in data.decisions for decision in group][: options.decisions]
    inventory = load_inventory("esconv")

    def seconds(samples: int) -> float:
        generation = GenerationConfig(
            max_new_tokens=options.tokens, temperature=0.7, top_p=0.9, samples=samples, batch=options.together
        )
        settings = EvaluateConfig(generation=generation, sra=SRAConfig(enabled=False))
        module = EvaluationModule(loaded, inventory, PromptConfig(), settings, seed=1)
        started = time.process_time()
        with torch.no_grad():
            module.test_step(decisions, 0)
        return time.process_time() - started

    seconds(1)
    several = seconds(options.samples)
    apart = sum(seconds(1) for _ in range(options.samples))
    print(f"{options.samples} samples in one evaluation: {several:.1f} s, {options.samples} evaluations: {apart:.1f} s")
    print(f"sampled_replies: {apart / several:.2f} x as fast (goal > 1.5 x)")


if __name__ == "__main__":
    main()
