"""Sides of `local_search.py`: a search whose roles are trained, against one that the base model plays; and memory.

In a round each tree makes the calls of one turn, as a search makes them: the strategist's priors, the supporter's
reply, the seeker's answer, the judge's score. Base: the base model plays all four in the words of `conf/roles`, with
the sampling of `llm=local`. Trained: priors are those of a policy, supporter and seeker are asked as in their training,
with replies at most as long as those of the corpus, and a reward model judges. Each side has a cache of its own that
starts empty. Adapters that are not named are random: they cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import load_smollm2, reward_settings
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model

from esc_lab.config import TemplateConfig
from esc_lab.config.prompt import PromptConfig, collect_seeker_words
from esc_lab.config.search import ROLES, LLMConfig
from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import load_inventory
from esc_lab.models.engine import EngineLimits
from esc_lab.models.load import LoadedModel
from esc_lab.models.slots import choose_cache_tokens
from esc_lab.prompts import SeekerProfile, load_layout
from esc_lab.prompts.trained import RewardPrompts, SeekerPrompts, SupporterPrompts
from esc_lab.scorers.conversations import ConversationEncoder, take_words
from esc_lab.scorers.reward_model import Calibration, RewardHead
from esc_lab.search.clients.local import LocalClient
from esc_lab.search.requests import Answer, Request
from esc_lab.search.reward_reader import RewardReader
from esc_lab.search.roles import Roles

CONF = Path(__file__).parents[1] / "conf"
INVENTORY = load_inventory("esconv")
JUDGES = ("reward", "rubric", "none")


class Side:
    """One way to play the roles.

    Args:
        clients: by role.
        asked: how roles that are trained are asked; None for the others.
    """

    def __init__(self, clients: Mapping[str, LocalClient], asked: Mapping[str, Any], llm: LLMConfig) -> None:
        self.clients, self.asked, self.llm = clients, asked, llm
        self.calls = 0

    async def send(self, request: Request) -> Answer:
        self.calls += 1
        return await self.clients[request.role].answer(request)

    async def play_turn(self, dialogue: Dialogue, turn: int) -> None:
        """The calls of one turn; the talk goes on as it did in the corpus."""
        roles = Roles(INVENTORY, SeekerProfile.of(dialogue), self.llm, self.asked, self.send, Counter(), turn)
        before, after = dialogue.turns[:turn], dialogue.turns[: turn + 1]
        await roles.rate(before)
        await roles.reply(before, dialogue.turns[turn].reply.strategies[0])
        judged = [roles.score(after)] if "judge" in self.clients else []
        await asyncio.gather(roles.answer(after), *judged)

    def play_round(self, dialogues: list[Dialogue], number: int) -> float:
        """Calls per second of one turn of every tree."""

        async def play() -> None:
            turns = [list(dialogue.decisions())[number + 2] for dialogue in dialogues]
            await asyncio.gather(*map(self.play_turn, dialogues, turns))

        before, started = self.calls, time.perf_counter()
        asyncio.run(play())
        return (self.calls - before) / (time.perf_counter() - started)


def compare_speed(options: argparse.Namespace) -> None:
    dialogues = long_dialogues(options.rounds, options.trees)
    with tempfile.TemporaryDirectory() as directory:
        base = base_side(options.dtype)
        trained = trained_side(options, Path(directory))
        ratios, turns = [], []
        for number in range(options.rounds):
            rates, seconds = [], []
            for side in (base, trained):
                started = time.process_time()
                rates.append(side.play_round(dialogues, number))
                seconds.append(time.process_time() - started)
            ratios.append(rates[1] / rates[0])
            turns.append(seconds[0] / seconds[1])
            shown = f"base {rates[0]:.2f} calls/s, trained {rates[1]:.2f} calls/s"
            print(f"round {number + 1}: {shown}; CPU a turn {turns[-1]:.1f} times less", flush=True)
    for side in (base, trained):
        asyncio.run(side.clients["supporter"].close())
    spread = f"ratio of the rounds {min(ratios):.1f} to {max(ratios):.1f}"
    print(f"{spread}; CPU seconds a turn {median(turns):.1f} times less")
    print(f"local_search_trained_roles: {median(ratios):.1f} (goal >= 3x calls/s)")


def long_dialogues(rounds: int, count: int) -> list[Dialogue]:
    """Dialogues of the sample corpus with so many rounds from their third decision on."""
    long = (each for each in read_dialogues(sample_path()) if len(list(each.decisions())) >= rounds + 2)
    return list(islice(long, count))


def base_side(dtype: str) -> Side:
    client = LocalClient(load_smollm2(Path(".cache"), dtype)[1], "base")
    return Side(dict.fromkeys(ROLES, client), dict.fromkeys(ROLES), llm_settings("local"))


def trained_side(options: argparse.Namespace, directory: Path) -> Side:
    loaded = load_smollm2(Path(".cache"), options.dtype)[1]
    places = {name: getattr(options, name) or directory / name for name in ("supporter", "seeker")}
    for seed, (name, place) in enumerate(places.items()):
        if not getattr(options, name):
            write_adapter(loaded, place, seed)
    base = LocalClient(loaded, "base")
    clients = {name: base.share(base.adapters.load(place), name, {}) for name, place in places.items()}
    clients["strategist"] = clients["supporter"]
    if options.judge == "rubric":
        clients["judge"] = base
    elif options.judge == "reward":
        write_adapter(loaded, directory / "reward", 2)
        clients["judge"] = base.share(base.adapters.load(directory / "reward"), "reward", {}, build_reader(base))
    supporter = SupporterPrompts(INVENTORY, TemplateConfig(), load_layout("cso")).record()
    seeker = SeekerPrompts(collect_seeker_words(PromptConfig(), {})).record()
    llm = llm_settings("policy")
    llm.supporter.max_tokens, llm.seeker.max_tokens = 32, 32  # the longest replies of the sample have about as many
    judge = RewardPrompts(False).record() if options.judge == "reward" else None
    return Side(clients, {"strategist": supporter, "supporter": supporter, "seeker": seeker, "judge": judge}, llm)


def build_reader(base: LocalClient) -> RewardReader:
    """Of an untrained reward model with the lengths of `stage=reward`."""
    settings, words = reward_settings(), take_words(load_layout("cso").wording)
    room = 2048 - (1 + settings.foils) * settings.reply_tokens
    conversations = ConversationEncoder(base.encoder, words, False, room, settings.reply_tokens)
    head = RewardHead(base.hidden_size, likelihood=settings.likelihood)
    return RewardReader(head, conversations, Calibration())


def llm_settings(name: str) -> LLMConfig:
    """The settings of `conf/llm`; what cannot be used is not asked for again."""
    file = OmegaConf.load(CONF / "llm" / f"{name}.yaml")
    del file["defaults"]
    file.local = {"model": OmegaConf.load(CONF / "model" / "smollm2_135m.yaml")}
    for role in ROLES:
        file[role].checkpoint, file[role].attempts = None, 1
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LLMConfig), file))
    assert isinstance(settings, LLMConfig)
    return settings


def write_adapter(loaded: LoadedModel, directory: Path, seed: int) -> None:
    """A LoRA adapter as `adapter=lora` makes it, with small random weights."""
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model: Any = get_peft_model(deepcopy(loaded.model), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=1e-3)
    model.save_pretrained(str(directory))


def compare_memory(dtype: str) -> None:
    """Peaks of processes of their own."""
    peaks = {}
    for roles in (1, 5):
        command = [sys.executable, sys.argv[0], "--roles", str(roles), "--dtype", dtype]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[roles] = float(found.stdout.splitlines()[-1])
        print(f"{roles} roles: {peaks[roles]:.0f} MiB", flush=True)
    print(f"five_roles_memory: {peaks[5] / peaks[1]:.2f} (goal <= 1.25x of one model)")


def measure_memory(roles: int, dtype: str) -> float:
    """MiB at the peak of five rounds, played in turn by so many roles, beyond what imports took."""
    peak: Callable[[], float] = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    started = peak()
    loaded = load_smollm2(Path(".cache"), dtype)[1]
    # Roles share no keys and values, so five fill the room for earlier prompts that one may not: it is a search's own.
    kept = choose_cache_tokens(loaded.model, EngineLimits.cache_tokens)
    base = LocalClient(loaded, "base", limits=EngineLimits(cache_tokens=kept))
    clients = [base]
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", _WRITE.format(directory=directory, dtype=dtype, count=roles)]
        if roles > 1:  # written elsewhere: the copies that it takes are not what is measured
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
            clients = [base.share(base.adapters.load(Path(directory, str(n))), str(n), {}) for n in range(roles)]
    llm = llm_settings("local")
    dialogues = long_dialogues(5, 2)
    for number in range(5):
        client = clients[number % len(clients)]
        Side(dict.fromkeys(ROLES, client), dict.fromkeys(ROLES), llm).play_round(dialogues, number)
    asyncio.run(base.close())
    return peak() - started


_WRITE = """
import sys
sys.path.insert(0, "benchmarks")
from pathlib import Path
from _common import load_smollm2, reward_settings
from _trained_roles import write_adapter
loaded = load_smollm2(Path(".cache"), "{dtype}")[1]
for number in range({count}):
    write_adapter(loaded, Path("{directory}") / str(number), number)
"""
