"""Calls of a CPU second that a search asks for: the engine against llama.cpp's server with the same SmolLM2.

A round asks for one turn of each tree: the strategist's ratings, the judge's scores, the supporter's and the seeker's
texts. Engine: SmolLM2 loaded here in bfloat16; ratings and scores are read off probabilities. Server: the same weights
as Q4_1 (the embedded file) and as Q8_0 (made of it), 16 slots, prefixes kept in each; ratings and scores are JSON
that a grammar holds to its schema, and with `--continued` also read off `top_logprobs`, a call for each number. All
keep what earlier rounds have read. CPU seconds are of all processes that a side needs, its HTTP included; loading and
a first call are not counted. Sides take turns, round by round. The texts alone have lines of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import psutil
import torch
from _common import load_smollm2, smollm2
from local_search import AXES, INVENTORY, PROMPTS, requests_of
from rich.console import Console
from rich.table import Table

from esc_lab.config.search import EndpointConfig
from esc_lab.search.clients.llama_server import LlamaServer, find_gguf
from esc_lab.search.clients.local import LocalClient
from esc_lab.search.clients.openai import OpenAIClient
from esc_lab.search.event_loop import run_loop
from esc_lab.search.requests import Client, Request, object_schema

GROUPS = {"ratings": ("strategist", "judge"), "texts": ("supporter", "seeker")}
BEST = {"strategist": 10, "judge": 4}


@dataclass
class Side:
    """A client, the processes that compute for it besides this one, and what its calls of each group took."""

    client: Client
    ratings: str = ""  # "": questions, all in one call
    processes: Sequence[psutil.Process] = ()
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    written: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return time.process_time() + sum(one.user + one.system for one in times)

    def rate(self, *groups: str) -> float:
        """Calls of a CPU second."""
        return sum(self.calls[group] for group in groups) / sum(self.cpu[group] for group in groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each tree")
    parser.add_argument("--trees", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=16, help="calls at a time, and the server's slots")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--continued", action="store_true", help="ratings by top_logprobs, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        run_loop(measure(options, Path(folder)))


async def measure(options: argparse.Namespace, folder: Path) -> None:
    embedded = find_gguf("auto", smollm2())
    files = {"Q4_1": embedded, "Q8_0": quantize(embedded, folder / "q8_0.gguf")}
    sides = {"engine": Side(LocalClient(load_smollm2(Path(".cache"), "bfloat16")[1], "SmolLM2-135M"))}
    for name, file in files.items():
        for ratings in ("written", "continued") if options.continued else ("written",):
            before = {process.pid for process in psutil.Process().children(recursive=True)}
            server = LlamaServer(file, options.in_flight, 2048 * options.in_flight, options.threads)
            own = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
            endpoint = EndpointConfig(model="SmolLM2-135M", ratings=ratings, timeout=3600.0)
            client = OpenAIClient(endpoint, connections=options.in_flight, server=server)
            sides[f"llama-server {name}, ratings {ratings}"] = Side(client, ratings, own)
    for side in sides.values():  # the first call takes longer
        await ask(side, "", requests_of(0, 1)[1:2], 1)
    for number in range(options.rounds):
        requests = requests_of(number, options.trees)
        for name, side in sides.items():
            for group, roles in GROUPS.items():
                asked = [request for request in requests if request.role in roles]
                if not (group == "texts" and side.ratings == "continued"):  # asked for in the same way as beside it
                    await ask(side, group, asked, options.in_flight)
            print(f"round {number + 1}, {name}: {describe(side)}", flush=True)
    for side in sides.values():
        await side.client.close()
    show(sides)


async def ask(side: Side, group: str, requests: Sequence[Request], in_flight: int) -> None:
    """Have them answered, so many at a time; `group` "" is not counted."""
    calls = [call for request in requests for call in as_asked(request, side.ratings)]
    free = asyncio.Semaphore(in_flight)

    async def answer(request: Request) -> int:
        async with free:
            return (await side.client.answer(request)).completion_tokens

    started, computed = time.perf_counter(), side.cpu_seconds()
    written = await asyncio.gather(*map(answer, calls))
    if group:
        side.calls[group] += len(requests)
        side.written[group] += sum(written)
        side.cpu[group] += side.cpu_seconds() - computed
        side.wall[group] += time.perf_counter() - started


def as_asked(request: Request, ratings: str) -> list[Request]:
    """A request as a search sends it where ratings are read in this way."""
    if not request.questions or not ratings:
        return [request]
    if ratings == "continued":
        return [replace(request, questions=(question,)) for question in request.questions]
    rates = request.role == "strategist"
    forms = [
        PROMPTS.rate_request(json=json, discourage=False) if rates else PROMPTS.judge_request(json=json)
        for json in (False, True)
    ]
    last = request.messages[-1]
    asked = replace(last, content=last.content.removesuffix(forms[0]) + forms[1])
    number = {"type": "integer", "minimum": 0, "maximum": BEST[request.role]}
    names = INVENTORY.names if rates else [axis.name for axis in AXES]
    schema = object_schema(dict.fromkeys(names, number))
    return [replace(request, messages=(*request.messages[:-1], asked), questions=(), schema=schema)]


def quantize(source: Path, target: Path) -> Path:
    """The weights of a GGUF file as Q8_0; what is no matrix stays as it is."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, one in reader.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue
        value = int(gguf.LlamaFileType.MOSTLY_Q8_0) if name == gguf.Keys.General.FILE_TYPE else one.contents()
        writer.add_key_value(name, value, one.types[0], one.types[-1] if len(one.types) > 1 else None)
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if kind != gguf.GGMLQuantizationType.F32:
            kind = gguf.GGMLQuantizationType.Q8_0
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data = weights if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(weights, kind)
        writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def describe(side: Side) -> str:
    parts = [f"{group} {side.calls[group]} calls, {side.cpu[group]:.1f} CPU s" for group in GROUPS if side.calls[group]]
    return "; ".join(parts)


def show(sides: dict[str, Side]) -> None:
    table = Table("side", "group", "calls", "CPU s", "s", "calls a CPU s", "tokens written a call", "and a CPU s")
    for name, side in sides.items():
        for group in (group for group in GROUPS if side.calls[group]):
            calls, cpu, written = side.calls[group], side.cpu[group], side.written[group]
            numbers = (f"{cpu:.1f}", f"{side.wall[group]:.1f}", f"{calls / cpu:.2f}", f"{written / calls:.1f}")
            table.add_row(name, group, str(calls), *numbers, f"{written / cpu:.1f}")
    Console(width=140).print(table)
    engine = sides.pop("engine")
    for name, side in sides.items():
        for label, groups in {"texts": ["texts"], "ratings": ["ratings"], "all": [*GROUPS]}.items():
            if all(side.calls[group] for group in groups):
                ratio, goal = engine.rate(*groups) / side.rate(*groups), " (goal > 1)" if label == "texts" else ""
                print(f"engine_vs_{name.replace(', ', '_').replace(' ', '_')}_{label}: {ratio:.2f}{goal}")
    texts = [engine.rate("texts") / side.rate("texts") for side in sides.values() if side.calls["texts"]]
    print(f"llama_server_texts: {min(texts):.2f} times its calls a CPU second at least (goal > 1)")


if __name__ == "__main__":
    main()
