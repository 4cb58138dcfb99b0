"""Calls per second of a strategy search with SmolLM2: the generation engine against `generate` and packed scoring.

Branches of several trees each make the calls of a turn, one after another: the strategist's ratings (one branch of a
tree asks for them), the supporter's reply, the seeker's answer, the judge's scores. Engine: what waits joins the next
pass, over a cache of prefixes. Generate: what waits is answered together, questions in packed token trees first, then
replies in one call of `generate`. Both start a round with the calls of the next turn, in turn; neither waits for the
other's results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _common import load_smollm2
from local_search import KINDS, requests_of

from esc_lab.models.engine import Engine, ReplyTask, ScoreTask, Task
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.prompts import Prompt
from esc_lab.search.model_worker import encode_options
from esc_lab.search.requests import Request
from esc_lab.tokens import ReplyTokens, TokenSequence, pack_units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each tree")
    parser.add_argument("--trees", type=int, default=8)
    parser.add_argument("--branches", type=int, default=4, help="of each tree, at the same time")
    options = parser.parse_args()
    _, loaded = load_smollm2(Path(".cache"), "bfloat16")
    stop = loaded.encoder.stop_tokens
    engine, ratios = Engine(loaded.model, stop), []
    for number in range(options.rounds):
        seconds = {}
        for side in ("engine", "generate")[:: 1 if number % 2 else -1]:
            chains = chains_of(loaded, number, options.trees, options.branches)
            started = time.perf_counter()
            if side == "engine":
                run_engine(engine, chains)
            else:
                run_generate(loaded.model, stop, chains)
            seconds[side] = time.perf_counter() - started
        calls = sum(map(len, chains))
        ratios.append(seconds["generate"] / seconds["engine"])
        rates = ", ".join(f"{side} {calls / spent:.2f} calls/s" for side, spent in seconds.items())
        print(f"round {number + 1}: {rates}", flush=True)
    print(f"ratio of the rounds {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"engine_vs_generate: {median(ratios):.2f}x the calls per second (goal >= 1.3x)")


def chains_of(loaded: LoadedModel, number: int, trees: int, branches: int) -> list[list[Task]]:
    """The calls of each branch in their order."""
    requests = requests_of(number, trees)
    chains = []
    for first in range(0, len(requests), len(KINDS)):
        for branch in range(branches):
            calls = requests[first : first + len(KINDS)]
            chains.append([task_of(loaded, call, branch) for call in (calls[1:] if branch else calls)])
    return chains


def task_of(loaded: LoadedModel, request: Request, branch: int) -> Task:
    encoder, messages = loaded.encoder, list(request.messages)
    if branch:  # what it is asked differs from branch to branch, as does the reply that it follows
        messages[-1] = replace(messages[-1], content=f"{messages[-1].content} Path {branch}.")
    prompt = encoder.encode_prompt(encoder.adapt(Prompt(tuple(messages)))).input_ids
    if not request.questions:
        return ReplyTask(prompt, Sampling(request.max_tokens, request.temperature, request.top_p), branch)
    options = [encode_options(encoder, question) for question in request.questions]
    return ScoreTask(prompt, [ids for many, _ in options for ids in many], [n for many, n in options for _ in many])


def run_engine(engine: Engine, chains: Sequence[Sequence[Task]]) -> None:
    following = {task: after for chain in chains for task, after in pairwise(chain)}
    for chain in chains:
        engine.add(chain[0])
    while not engine.idle:
        for task in engine.step():
            if task in following:
                engine.add(following[task])


def run_generate(model, stop: frozenset[int], chains: Sequence[Sequence[Task]]) -> None:
    left = [list(chain) for chain in chains]
    while left := [chain for chain in left if chain]:
        score = [chain for chain in left if isinstance(chain[0], ScoreTask)]
        write = [chain for chain in left if isinstance(chain[0], ReplyTask)]
        if score:
            score_all(model, [chain.pop(0) for chain in score])
        else:
            longest = write[0][0].sampling
            tasks = [chain.pop(0) for chain in write if chain[0].sampling == longest]
            generate(model, [task.prompt for task in tasks], stop, longest, [task.seed for task in tasks])


@torch.inference_mode()
def score_all(model, tasks: Sequence[ScoreTask]) -> None:
    units = []
    for number, task in enumerate(tasks):
        whole = [np.concatenate([task.prompt, ids]) for ids in task.continuations]
        starts = [len(task.prompt) + first for first in task.first]
        units.append(
            [
                TokenSequence(ids, (ReplyTokens((number, option), start, len(ids)),))
                for option, (ids, start) in enumerate(zip(whole, starts, strict=True))
            ]
        )
    for row in pack_units(units, 4096):
        reply_log_probs(model, row)


if __name__ == "__main__":
    main()
