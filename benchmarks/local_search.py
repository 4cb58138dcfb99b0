"""Calls per second of a strategy search with SmolLM2: the local client against one `generate` per call.

Eight trees of the sample corpus grow turn by turn. A round asks for one turn of each: the strategist's ratings, the
supporter's reply, the seeker's answer and the judge's scores. Plain: one `model.generate` after another, where ratings
and scores are written as JSON; the calls of every fourth tree. Client: 32 requests in flight, for all trees; ratings
and scores are read off probabilities. The two are run in turn, round by round. The client starts with an empty cache.

With `--trained` it times a search whose roles are trained (a policy's priors, a reward model as judge) against today's,
in which the base model plays all of them; with `--memory` the peak of five roles, each with an adapter of its own,
against that of the base model alone, each in a process of its own and beyond what its imports take (`_trained_roles`).

With `--repeated N` it searches N times twice instead, one call after another and many at once, with another seed each
time and without the request cache, and counts the pairs that gave the same ESC-Pro byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch
from _common import load_smollm2
from _trained_roles import JUDGES, compare_memory, compare_speed, measure_memory
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import typed
from esc_lab.config.search import LLMConfig
from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.models.load import LoadedModel
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.prompts import Prompt, SeekerProfile
from esc_lab.search.clients.local import LocalClient
from esc_lab.search.requests import Question, Request
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.stages.run_stage import run_stage

KINDS = ("strategist", "supporter", "seeker", "judge")
INVENTORY = load_inventory("esconv")
PROMPTS = build_role_prompts(INVENTORY, LLMConfig())
AXES = PROMPTS.axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each tree")
    parser.add_argument("--trees", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=32, help="requests to the client at a time")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--trained", action="store_true", help="time trained roles against the base model")
    parser.add_argument("--judge", default="reward", choices=JUDGES, help="of the trained side")
    parser.add_argument("--supporter", type=Path, help="adapter directory of a trained supporter")
    parser.add_argument("--seeker", type=Path, help="adapter directory of a trained seeker")
    parser.add_argument("--memory", action="store_true", help="measure memory in place of speed")
    parser.add_argument("--roles", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repeated", type=int, default=0, help="pairs of searches to compare instead of timing")
    parser.add_argument("--model", default="smollm2_135m", help="of these, a file in conf/model")
    parser.add_argument("--seeds", type=int, default=3, help="trees of each of these")
    options = parser.parse_args()
    if options.repeated:
        count_repeated(options.model, options.dtype, options.seeds, options.repeated)
    elif options.roles:
        print(measure_memory(options.roles, options.dtype))
    elif options.memory:
        compare_memory(options.dtype)
    elif options.trained:
        compare_speed(options)
    else:
        compare_with_generate(options)


def compare_with_generate(options: argparse.Namespace) -> None:
    _, loaded = load_smollm2(Path(".cache"), options.dtype)
    rounds = [requests_of(number, options.trees) for number in range(options.rounds)]
    client = LocalClient(loaded, "SmolLM2-135M")
    seconds, ratios, tokens = defaultdict(list), [], []
    for number, requests in enumerate(rounds):
        loaded.model.set_attn_implementation("sdpa")
        before = time.perf_counter()
        some = [request for place, request in enumerate(requests) if place // len(KINDS) % 4 == 0]
        for request in some:
            started = time.perf_counter()
            tokens.append(plain(loaded, request))
            seconds[request.role].append(time.perf_counter() - started)
        plain_rate = len(some) / (time.perf_counter() - before)
        loaded.model.set_attn_implementation(IMPLEMENTATION)
        before = time.perf_counter()
        asyncio.run(answers(client, requests, options.in_flight))
        client_rate = len(requests) / (time.perf_counter() - before)
        ratios.append(client_rate / plain_rate)
        print(f"round {number + 1}: plain {plain_rate:.2f} calls/s, client {client_rate:.2f} calls/s", flush=True)
    asyncio.run(client.close())
    for role, own in seconds.items():
        print(f"plain, {role}: {median(own):.2f} s a call")
    print(f"{mean(tokens):.0f} prompt tokens a call; ratio of the rounds {min(ratios):.1f} to {max(ratios):.1f}")
    print(f"local_search_speedup: {median(ratios):.1f} (goal >= 4x)")


def count_repeated(model: str, dtype: str, seeds: int, pairs: int) -> None:
    """Search twice for each pair, and print how many of them are the same."""
    same = 0
    for number in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            ways = [("search.concurrency=1", "search.trees=1"), ("search.concurrency=64", "search.trees=32")]
            found = [search(Path(folder) / way[0], model, dtype, seeds, number, way) for way in ways]
            same += found[0] == found[1]
        print(f"pair {number + 1}: {'the same' if found[0] == found[1] else 'different'}", flush=True)
    print(f"local_search_repeated: {same} of {pairs} searches with {model} in {dtype} gave the same bytes")


def search(directory: Path, model: str, dtype: str, seeds: int, seed: int, words: Sequence[str]) -> dict[str, bytes]:
    """Files of the ESC-Pro that a search found, by name."""
    own = [f"model@llm.local.model={model}", f"llm.local.model.dtype={dtype}", f"search.seeds={seeds}"]
    own += [f"search.seed={seed}", "stage=search", "mcts=quick", "search.cache=false", "search.judge_check=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = typed(compose("config", [*own, "logger=none", "reuse=false", *words]))
    directory.mkdir()
    run_stage(replace(cfg, run_dir=str(directory)))
    return {path.name: path.read_bytes() for path in sorted((directory / "esc_pro").glob("*.json*"))}


def requests_of(number: int, trees: int) -> list[Request]:
    """The calls of a round: one turn of each tree, as the local client gets them."""
    requests = []
    for dialogue in [dialogue for dialogue in read_dialogues(sample_path()) if len(dialogue.turns) >= 12][:trees]:
        turn = list(dialogue.decisions())[number + 2]
        reply = dialogue.turns[turn].reply
        before, after = dialogue.turns[:turn], dialogue.turns[: turn + 1]
        case = SeekerProfile(dialogue.situation, dialogue.emotion, dialogue.problem)
        said = PROMPTS.reply_request(reply.strategies[0])
        requests += [
            rated("strategist", before, PROMPTS.rate_request(json=False, discourage=False), INVENTORY.names, 10),
            text("supporter", PROMPTS.support_messages(before, said), 48),
            text("seeker", PROMPTS.seeker_messages(case, after, PROMPTS.answer_request(marker=True)), 32),
            rated("judge", after, PROMPTS.judge_request(json=False), [axis.name for axis in AXES], 4),
        ]
    return requests


def text(role: str, messages, max_tokens: int) -> Request:
    return Request(role, messages, max_tokens=max_tokens, temperature=0.8, top_p=0.95)


def rated(role: str, history: Sequence[Turn], asked: str, names: Sequence[str], most: int) -> Request:
    options = tuple(map(str, range(most + 1)))
    questions = tuple(Question(name, f"{name}: ", options) for name in names)
    return Request(role, PROMPTS.support_messages(history, asked), questions, temperature=0.0)


def plain(loaded: LoadedModel, request: Request) -> int:
    """One call of transformers' `generate`; the number of prompt tokens."""
    if request.questions:
        names = [question.name for question in request.questions]
        rate = request.role == "strategist"
        asked = PROMPTS.rate_request(json=True, discourage=False) if rate else PROMPTS.judge_request(json=True)
        short = PROMPTS.rate_request(json=False, discourage=False) if rate else PROMPTS.judge_request(json=False)
        message = request.messages[-1]
        message = replace(message, content=message.content.removesuffix(short) + asked)
        # As long as the JSON object: names, numbers and punctuation.
        length = len(loaded.encoder.tokenizer(str(dict.fromkeys(names, 5))).input_ids)
        request = replace(request, messages=(*request.messages[:-1], message), max_tokens=length)
    prompt = torch.from_numpy(loaded.encoder.encode_prompt(Prompt(request.messages)).input_ids)[None]
    sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
    with torch.inference_mode():
        loaded.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            eos_token_id=loaded.encoder.end_of_turn,
            pad_token_id=loaded.encoder.end_of_turn,
            **(sampling if request.temperature else {"do_sample": False}),
        )
    return prompt.shape[1]


async def answers(client: LocalClient, requests: Sequence[Request], in_flight: int) -> None:
    free = asyncio.Semaphore(in_flight)

    async def answer(request: Request) -> None:
        async with free:
            await client.answer(request)

    await asyncio.gather(*map(answer, requests))


if __name__ == "__main__":
    main()
