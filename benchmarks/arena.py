"""Whole talks of stage `converse`: many at once on the engine and at an endpoint, the same in any order, and replayed.

1. `engine`: talks of SmolLM2 on both sides: many at once against one talk after another (every eighth of them), side by
   side in one run, by supporter turns a second; the model is loaded before. As it came, a seeker soon answers as the
   supporter, which ends a talk; `--seeker RUN` has a trained one.
2. `endpoint`: twice as many talks as connections against a loopback HTTP server with 100 ms a call, in a process of its
   own: calls a second from the first answers until fewer talks are left than connections, against the ideal of
   64 / 0.1 s.
3. `identical`: the same seed at concurrency 1 and 64: talks and journals are compared, of 64 talks at an endpoint whose
   answers depend on the request alone, and of four short ones with SmolLM2 in float32.
4. `planted`: scripted supporters of known quality with a scripted seeker: each measure that claims to tell them apart
   puts the right one first (`tests/evaluation/test_planted_supporters.py` has bounds for more of them).
5. `replay`: 40 talks of 10 turns are recorded at an endpoint, and replayed by a process that imports no torch.
6. `chat`: a person's messages to SmolLM2: the time to the first token, and the tokens computed of those of the prompt.

A whole `engine` takes an hour on two cores: `--talks 16 --turns 4` shrinks it. CPU seconds stand beside
wall-clock ones, for machines with other work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _search_schedules import endpoint
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF, native_dtype
from esc_lab.config import Config, typed
from esc_lab.config.search import ASKED
from esc_lab.data.dialogue import Dialogue
from esc_lab.evaluation.arena.chat_reply import ReplySettings
from esc_lab.evaluation.arena.session import ConverseSession
from esc_lab.runs.layout import JOURNAL_SUFFIX, TALKS, TALKS_FILE
from esc_lab.search.calls import open_calls
from esc_lab.search.requests import Answer, Request
from esc_lab.search.work_results import WorkResult
from esc_lab.stages.chat import open_session
from esc_lab.stages.converse import load_cards, play_supporter
from esc_lab.stages.run_stage import run_stage
from tests.evaluation.talk_roles import play

ROOT = Path(__file__).parents[1]
LATENCY_S, CONNECTIONS = 0.1, 64
# Scripted supporters, and the measures by which one of them comes first: the highest, or with a minus the lowest.
SUPPORTERS = ("kind", "cold", "parrot", "ending", "asking")
FIRST = {
    "relief": "kind", "success": "kind", "-turns_to_success": "kind", "-relief": "cold", "echoed": "parrot",
    "-turns": "ending", "ends/supporter": "ending", "asks": "asking",
}  # fmt: skip
SAID = (
    "I lost my job last month and I feel like a failure.", "I have not told my wife yet. I leave every morning.",
    "She would be so disappointed, we have just bought the house.", "Maybe on Sunday. How would I even begin?",
)  # fmt: skip
REPLAYED_TALKS, REPLAYED_TURNS = 40, 10
_REPLAY = (
    "import sys; from esc_lab.cli.main import main; sys.argv = ['run.py', *sys.argv[1:]]; status = main();"
    "print('torch' in sys.modules, file=sys.stderr); sys.exit(status)"
)


def main() -> None:
    parts = {"engine": compare_engine, "endpoint": measure_endpoint, "identical": compare_orders,
             "planted": rank_planted, "replay": time_replay, "chat": time_chat}  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=[*parts])
    parser.add_argument("--talks", type=int, default=64, help="engine: talks that are held at once")
    parser.add_argument("--turns", type=int, default=10, help="engine: supporter turns of a talk")
    parser.add_argument("--every", type=int, default=8, help="engine: of these, one in so many is held alone")
    parser.add_argument("--seeker", help="engine: the training of the seeker (stage=sft data.side=seeker)")
    parser.add_argument("--cache", default=".cache", help="directory of converted models")
    options = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "none")
    for part in options.parts:
        parts[part](options)


@dataclass
class Held:
    """Talks, and what they took; `finished` is when calls came back, in seconds from the start."""

    result: WorkResult[Dialogue]
    seconds: float
    cpu_seconds: float
    finished: list[float]

    @property
    def turns(self) -> int:
        return sum(len(list(talk.decisions())) for talk in self.result.finished)


class Timed:
    """A client that notes when its calls come back."""

    def __init__(self, client: Any, finished: list[float]) -> None:
        self._client, self._finished = client, finished
        self.identity, self.scores, self.retries = client.identity, client.scores, client.retries

    async def answer(self, request: Request) -> Answer:
        answer: Answer = await self._client.answer(request)
        self._finished.append(time.perf_counter())
        return answer

    async def close(self) -> None:
        await self._client.close()


def compare_engine(options: argparse.Namespace) -> None:
    words = (*local(options, native_dtype()), "llm.local.repeatable=false")
    each = -(-options.talks // 40)  # talks with a card
    if options.seeker:
        words += (f"llm.seeker.checkpoint={options.seeker}",)
    room = max(65536, 300 * options.talks * options.turns)  # as docs/arena.md advises for many long talks
    at_once = configure(*words, "search.concurrency=64", f"converse.talks={each}", f"llm.local.cache_tokens={room}")
    print(f"room for {room:,} tokens of earlier prompts", flush=True)
    together = hold(at_once, options.talks // each)
    print_held(f"{len(together.result.finished)} talks at once", together)
    alone = hold(configure(*words, "search.concurrency=1"), options.talks // each, options.every)
    print_held(f"{len(alone.result.finished)} talks one after another", alone)
    cpu = (together.turns / together.cpu_seconds) / (alone.turns / alone.cpu_seconds)
    wall = (together.turns / together.seconds) / (alone.turns / alone.seconds)
    print(f"arena_vs_one_after_another: {wall:.2f}x the turns a second, {cpu:.2f}x those a CPU second (goal >= 5x)")


def measure_endpoint(options: argparse.Namespace) -> None:
    with endpoint(LATENCY_S, play) as url:
        words = (*served(url), "converse.talks=4", f"search.concurrency={CONNECTIONS}")
        held = hold(configure(*words), 2 * CONNECTIONS // 4)
    print_held(f"{len(held.result.finished)} talks, {CONNECTIONS} connections", held)
    # All talks take as many calls: the last ones are under way when that many are left. The first answers stand for
    # a start that is the same however long the talks are.
    full = int(len(held.finished) * (1 - CONNECTIONS / len(held.result.finished)))
    finished = sorted(held.finished)
    start, end = finished[CONNECTIONS - 1], finished[full - 1]
    rate, ideal = (full - CONNECTIONS) / (end - start), CONNECTIONS / LATENCY_S
    print(f"before the first answers: {start:.2f} s")
    print(f"computed for a call, HTTP client included: {1000 * held.cpu_seconds / len(held.finished):.2f} ms")
    print(f"arena_share_of_ideal_rate: {rate / ideal:.3f} of {ideal:.0f} calls/s (goal >= 0.90)")


def compare_orders(options: argparse.Namespace) -> None:
    few = argparse.Namespace(**{**vars(options), "turns": min(options.turns, 3)})
    with endpoint(0.0, play) as url:
        print_orders("at_any_concurrency", *served(url), "cards.limit=32", "converse.talks=2")
    print_orders("with_smollm2_at_any_concurrency", *local(few, "float32"), "cards.limit=4")


def print_orders(name: str, *words: str) -> None:
    """Whether talks one after another and 64 at once are the same."""
    left = []
    for concurrency in (1, CONNECTIONS):
        with tempfile.TemporaryDirectory() as directory:
            own = (*words, f"search.concurrency={concurrency}", "logger=none", "reuse=false")
            run_stage(replace(configure(*own), run_dir=directory))
            talks = (Path(directory) / TALKS_FILE).read_bytes()
            left.append((talks, read_answers(Path(directory) / TALKS)))
    same, count = left[0] == left[1], len(left[0][1])
    print(f"arena_same_{name}: {'identical' if same else 'different'} talks and journals of {count} (goal identical)")


def rank_planted(_: argparse.Namespace) -> None:
    found: dict[str, dict[str, float]] = {}
    with endpoint(0.0, play) as url:
        for name in SUPPORTERS:
            with tempfile.TemporaryDirectory() as directory:
                cfg = configure(*served(url)[:-1], f"llm.supporter.model={name}", "logger=none", "reuse=false")
                found[name] = run_stage(replace(cfg, run_dir=directory))
    right = 0
    for measure, first in FIRST.items():
        sign = -1 if measure.startswith("-") else 1
        values = {name: sign * metrics[f"converse/{measure.lstrip('-')}"] for name, metrics in found.items()}
        right += all(values[first] > value for name, value in values.items() if name != first)
        print(measure, {name: round(sign * value, 2) for name, value in values.items()}, f"first: {first}")
    print(f"arena_planted_supporters: {right} of {len(FIRST)} measures put the right one first (goal all)")


def time_replay(options: argparse.Namespace) -> None:
    shape = (f"cards.limit={REPLAYED_TALKS}", f"converse.max_turns={REPLAYED_TURNS}", "logger=none", "reuse=false")
    with tempfile.TemporaryDirectory() as directory:
        recorded = Path(directory, "recorded")
        with endpoint(0.0, play) as url:
            run_stage(replace(configure(*served(url), *shape), run_dir=str(recorded)))
        call = ["stage=converse", "llm=replay", f"llm.strategist.recording={recorded}", *shape,
                f"converse.min_turns={REPLAYED_TURNS}", f"hydra.run.dir={directory}/replayed"]  # fmt: skip
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _REPLAY, *call], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        same = Path(directory, "replayed", TALKS_FILE).read_bytes() == (recorded / TALKS_FILE).read_bytes()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    torch = "torch is imported" if done.stderr.splitlines()[-1] == "True" else "no torch"
    print(f"arena_replay: {seconds:.1f} s, {cpu:.1f} CPU seconds for {REPLAYED_TALKS} talks, "
          f"{'the same bytes' if same else 'OTHER BYTES'}, {torch} (goal < 5 s, no torch)")  # fmt: skip


def time_chat(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        cfg = configure(f"cache_dir={options.cache}", stage="chat")
        session = open_session(replace(cfg, run_dir=directory))
        how, first = ReplySettings(next(iter(session.models[0].templates))), []
        for message in SAID:
            *_, exchange = session.send(message, how)
            (reply,) = exchange.candidates
            assert reply.attention is not None
            first.append(reply.first_token_s)
            print(f"first token after {reply.first_token_s:.2f} s; {reply.computed} tokens computed for a prompt of "
                  f"{len(reply.attention.prompt)} and a reply of {len(reply.attention.reply)}", flush=True)  # fmt: skip
    print(f"arena_chat_first_token_s: {max(first):.2f} at most (goal < 1)")


def configure(*words: str, stage: str = "converse") -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", [f"stage={stage}", "search.cache=false", *words]))


def local(options: argparse.Namespace, dtype: str) -> tuple[str, ...]:
    """Both sides by SmolLM2, no talk shorter than the others."""
    return (
        f"model.dtype={dtype}", f"llm.local.model.dtype={dtype}", f"cache_dir={options.cache}",
        f"converse.max_turns={options.turns}", f"converse.min_turns={options.turns}",
    )  # fmt: skip


def served(url: str) -> tuple[str, ...]:
    """Both sides at the endpoint, where a supporter asks and the seeker never has enough."""
    return ("llm=openai", "llm.openai.model=asking", f"llm.openai.base_url={url}",
            f"converse.min_turns={REPLAYED_TURNS}")  # fmt: skip


def hold(cfg: Config, cards: int, every: int = 1) -> Held:
    """Hold talks with the seekers of one in `every` of the first cards; models are loaded before the clock starts."""
    with tempfile.TemporaryDirectory() as directory:
        cfg = replace(cfg, run_dir=directory)
        calls = open_calls(cfg, ASKED["converse"], {"supporter": play_supporter(cfg)})
        finished: list[float] = []
        timed = {id(client): Timed(client, finished) for client in calls.clients.values()}
        calls.clients = {role: timed[id(client)] for role, client in calls.clients.items()}
        started, computed = time.perf_counter(), time.process_time()
        result = calls.run(ConverseSession(cfg, load_cards(cfg)[:cards:every], calls).converse(), directory)
        seconds, cpu = time.perf_counter() - started, time.process_time() - computed
    return Held(result, seconds, cpu, [at - started for at in finished])


def read_answers(directory: Path) -> dict[str, dict[str, Any]]:
    """What the journals of talks hold, by talk and key."""
    return {
        path.name: {record["key"]: record["answer"] for record in map(json.loads, path.read_text().splitlines()[1:])}
        for path in directory.glob(f"*{JOURNAL_SUFFIX}")
    }


def print_held(name: str, held: Held) -> None:
    print(
        f"{name}: {held.turns} supporter turns, {len(held.finished)} calls in {held.seconds:.1f} s "
        f"({held.cpu_seconds:.1f} CPU seconds), {held.turns / held.seconds:.2f} turns/s, "
        f"{len(held.finished) / held.seconds:.1f} calls/s",
        flush=True,
    )


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
