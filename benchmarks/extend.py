"""Continuations under prompted strategies with SmolLM2: stage `extend` against one `generate` a reply, and its tokens.

Contexts of the sample corpus are continued under strategies of an inventory. Extend: its session with the local client,
which computes what prompts share once and writes many replies together. Generate: transformers' `generate`, one prompt
after another, for every few replies, with as many tokens as the session wrote there. Plain: what the session computed,
each token once (prompts as a trie), as plain causal passes with as many rows of the LM head: prompts in rows of a
pass's size, then replies with a batch's tokens a pass over a cache of the mean prompt's length.

The three run in turn, round by round; seconds are the CPU's of one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch
from _common import load_smollm2
from hydra import compose, initialize_config_dir
from transformers import DynamicCache

from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, typed
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import build_inventory
from esc_lab.models.engine import EngineLimits
from esc_lab.models.forward import base_model
from esc_lab.models.load import LoadedModel
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.prompts import Prompt
from esc_lab.search.calls import Calls
from esc_lab.search.clients.local import LocalClient
from esc_lab.search.extend_session import ExtendSession
from esc_lab.search.requests import Answer, Request
from esc_lab.tokens import build_tree
from esc_lab.tokens.encode import IntArray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contexts", type=int, default=4, help="of each round, each under all strategies")
    parser.add_argument("--inventory", default="extes_sra")
    parser.add_argument("--tokens", type=int, default=48, help="longest reply")
    parser.add_argument("--every", type=int, default=8, help="one of so many replies is written by generate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, loaded = load_smollm2(Path(".cache"), "bfloat16")
    faster, dearer = [], []
    for number in range(options.rounds):
        cfg = settings(options.inventory, options.tokens, options.contexts, number)
        replies, spent = extend(loaded, cfg)
        ids = [(encode(loaded, request), answer.completion_tokens) for request, answer in replies]
        sides: dict[str, Callable[[], None]] = {
            "generate": lambda ids=ids: generate_each(loaded, ids[:: options.every]),
            "plain": lambda ids=ids: run_plain(loaded, ids),
        }
        seconds = {"extend": spent}
        for side in list(sides)[:: 1 if number % 2 else -1]:
            started = time.process_time()
            sides[side]()
            seconds[side] = time.process_time() - started
        apart = seconds["generate"] / len(ids[:: options.every]) * len(ids)
        faster.append(apart / spent)
        dearer.append(spent / seconds["plain"])
        unique, read = len(build_tree([prompt for prompt, _ in ids])), sum(len(prompt) for prompt, _ in ids)
        print(
            f"round {number + 1}: {len(ids)} replies of {mean(count for _, count in ids):.0f} tokens, prompts of "
            f"{read} tokens, {unique} of them different; CPU seconds: extend {spent:.1f}, generate {apart:.1f} (of "
            f"{seconds['generate']:.1f} for one in {options.every}), plain {seconds['plain']:.1f}",
            flush=True,
        )
    print(f"extend_vs_generate: {median(faster):.2f}x the replies per second (goal >= 4x)")
    print(f"extend_over_unique_tokens: {median(dearer):.2f}x the cost of its unique tokens (goal <= 1.3x)")


def settings(inventory: str, tokens: int, contexts: int, number: int) -> Config:
    words = [
        "stage=extend", f"inventory={inventory}", "extend.number=null", "extend.share=1", "extend.unconditional=1",
        f"extend.seed={number + 1}", "extend.splits=[train]", f"data.limit={{train: {contexts}}}",
        f"llm.supporter.max_tokens={tokens}", "llm.supporter.attempts=1", "search.cache=false",
        f"data.split_seed={number}",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", words))


class Recording:
    """The local client, and what it was asked and answered."""

    def __init__(self, client: LocalClient) -> None:
        self.client, self.identity, self.scores, self.retries = client, client.identity, client.scores, {}
        self.replies: list[tuple[Request, Answer]] = []

    async def answer(self, request: Request) -> Answer:
        answer = await self.client.answer(request)
        self.replies.append((request, answer))
        return answer

    async def close(self) -> None:
        await self.client.close()


def extend(loaded: LoadedModel, cfg: Config) -> tuple[list[tuple[Request, Answer]], float]:
    """What the session asked for with the answers, and the CPU seconds that it took."""
    splits = read_splits(cfg.data, build_inventory(cfg.inventory), ReadReport(), needs_labels=False)
    client = Recording(LocalClient(loaded, "SmolLM2", limits=EngineLimits(batch=cfg.llm.local.batch)))

    async def work(run_dir: str) -> float:
        calls = Calls({"supporter": client}, cfg.search.concurrency)
        session = ExtendSession(replace(cfg, run_dir=run_dir), splits, calls)
        started = time.process_time()
        await session.extend()
        spent = time.process_time() - started
        await calls.close()
        return spent

    with tempfile.TemporaryDirectory() as run_dir:
        spent = asyncio.run(work(run_dir))
    return client.replies, spent


def encode(loaded: LoadedModel, request: Request) -> IntArray:
    encoder = loaded.encoder
    return encoder.encode_prompt(encoder.adapt(Prompt(request.messages))).input_ids


@torch.inference_mode()
def generate_each(loaded: LoadedModel, replies: list[tuple[IntArray, int]]) -> None:
    model = base_model(loaded.model)
    model.set_attn_implementation("sdpa")
    for prompt, count in replies:
        ids = torch.from_numpy(prompt)[None]
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.7, top_p=0.9,
            min_new_tokens=count, max_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
    model.set_attn_implementation(IMPLEMENTATION)


@torch.inference_mode()
def run_plain(loaded: LoadedModel, replies: list[tuple[IntArray, int]]) -> None:
    limits, model = EngineLimits(), base_model(loaded.model)
    model.set_attn_implementation("sdpa")
    unique, length = len(build_tree([prompt for prompt, _ in replies])), int(mean(len(prompt) for prompt, _ in replies))
    ids = torch.arange(limits.row_tokens)[None]
    for start in range(0, unique, limits.row_tokens):
        model(input_ids=ids[:, : min(limits.row_tokens, unique - start)], logits_to_keep=1)
    cache = DynamicCache()
    model.get_decoder()(input_ids=ids[:, :length], past_key_values=cache)
    for _ in range(-(-sum(count for _, count in replies) // limits.batch)):
        model(input_ids=ids[:, : limits.batch], past_key_values=cache, logits_to_keep=limits.batch)
        cache.crop(-limits.batch)
    model.set_attn_implementation(IMPLEMENTATION)


if __name__ == "__main__":
    main()
