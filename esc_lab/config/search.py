"""The part of the schema that stage `search` reads: the algorithm, who plays its roles, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from esc_lab.config.item import COUNT, FROM_ZERO, LOOKS, PLACE, SPEED, item, looks, results, section
from esc_lab.config.model import ModelConfig

ROLES = ("strategist", "supporter", "seeker", "judge")
# Stages whose results are what clients answered -> the roles that are asked in them.
ASKED: Mapping[str, tuple[str, ...]] = {
    "search": ROLES, "extend": ("supporter",), "cards": ("seeker",), "converse": ("supporter", "seeker"),
}  # fmt: skip

# Who can play a role -> what it is. A client is a module of `esc_lab.search.clients` with this name.
CLIENTS = {
    "local": "a model that is loaded here",
    "policy": "as strategist, the choice of a trained supporter",
    "reward": "as judge, a trained reward model",
    "openai": "an endpoint with OpenAI's chat completions",
    "replay": "a journal of an earlier search",
}
LOADED = ("local", "policy", "reward")  # those with a model that is loaded here: `llm.local.model`, or the role's own


@dataclass
class PreferenceConfig:
    """What makes a reply preferred or rejected; the defaults are the published rule but for `rejected_visits`."""

    value: str = item("max_q", "what the limits are on: mean value Q, or visits N", choices=("max_q", "max_n"))
    threshold: str = item(
        "absolute",
        "whether preferred_min and rejected_max are values, or quantiles of the values in each tree",
        choices=("absolute", "quantile"),
    )
    ended: bool = item(
        True, "only leaves where the talk has ended are preferred; false: all leaves, wherever talks stand"
    )
    preferred_min: float = item(0.5, "least value of a leaf that is preferred, with all decisions before it")
    preferred_visits: int = item(2, "least visits of such a leaf", within=FROM_ZERO)
    rejected_max: float = item(0.5, "highest value of a rejected sibling")
    rejected_visits: int = item(1, "least visits of a rejected sibling; the published code has 0", within=FROM_ZERO)
    lower: bool = item(False, "a rejected sibling also needs a lower value than the preferred reply")
    extend_rejected: bool = item(
        False, "give siblings texts and a rollout where a preferred reply has no rejected one yet"
    )


@dataclass
class MCTSConfig:
    """Constants of the search; the defaults are the published ones."""

    name: str = item("paper", "short name, used in run names", affects=LOOKS)
    policy: str = item(
        "puct",
        "how leaves are selected: by PUCT, uniformly at random, or by trying n candidates and following the best",
        choices=("puct", "random", "best_of_n"),
    )
    c: float = item(1.0, "weight of PUCT's exploration term", within=FROM_ZERO)
    candidates: int = item(8, "policy=best_of_n: strategies that are tried at each decision", within=COUNT)
    min_iterations: int = item(100, "stop after this many iterations, if min_ended leaves have ended", within=FROM_ZERO)
    min_ended: int = item(1, "ended leaves, the seed's among them, that are needed to stop there", within=FROM_ZERO)
    max_ended: int = item(25, "stop when this many leaves have ended", within=COUNT)
    max_iterations: int = item(200, "stop in any case", within=COUNT)
    rollout_rounds: int = item(4, "most rounds (strategist, supporter, seeker) of a rollout", within=FROM_ZERO)
    rating_scale: float = item(5.0, "priors are softmax(rating / scale)", within=(1e-6, float("inf")))
    judge_own_turn: bool = item(False, "the reply of the selected leaf is judged too, not only those simulated from it")
    simulate: bool = item(
        True,
        "a leaf is worth what is played on from it; false: what the judge says of its own reply, without rollouts, as "
        "AlphaZero's value network does; the seeker answers only where the search goes on",
    )
    seed_path: bool = item(True, "put the seed dialogue into the tree, as a path with Q = 1 and N = 100")
    in_flight: int = item(
        1,
        "leaves of a tree that are worked on at once, the next ones foreseen; any number gives the same tree",
        within=COUNT,
        affects=SPEED,
    )
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)


@dataclass
class RoleConfig:
    client: str = item("local", f"who answers: {', '.join(CLIENTS.values())}", choices=tuple(CLIENTS))
    model: str | None = item(
        None,
        "openai: the model's name there, null = llm.openai.model; local: a model directory, null = llm.local.model",
    )
    checkpoint: str | None = item(
        None,
        "local, policy: run directory with a trained adapter or model; supporter and seeker are asked as in training; "
        "reward: run directory of stage=reward",
        path=True,
    )
    base_url: Any = item(None, "openai: as llm.openai.base_url, which null stands for", method=False)
    recording: str | None = item(
        None,
        "replay: journal of an earlier search (trees/*.journal.jsonl), or run directory of an earlier "
        "converse, cards or judge",
        path=True,
    )
    temperature: float | None = item(
        1.0,
        "sampling temperature; 0 = greedy, null = not sent to an endpoint, which then has its own; client=policy: that "
        "of the priors",
        within=FROM_ZERO,
    )
    top_p: float | None = item(1.0, "nucleus sampling mass; null = not sent to an endpoint", within=(1e-6, 1))
    max_tokens: int = item(256, "longest answer in tokens", within=COUNT)
    no_repeat: int = item(
        0, "local: write no run of so many tokens that the talk has already; 0 = any", within=FROM_ZERO
    )
    attempts: int = item(3, "times that it is asked before its answer counts as missing", within=COUNT)
    licence: str | None = item(
        None,
        "licence of the model, for the data card; null = that of llm.local.model, if it plays",
        affects=looks(*ASKED),
    )


@dataclass
class StrategistConfig(RoleConfig):
    discourage: bool = item(
        False, "tell it not to repeat a strategy or overuse planning, as the published one was told"
    )
    min_prior: float = item(
        0.01,
        "client=policy: least prior of a strategy, whatever the policy thinks; what is left is shared as it says",
        within=(0, 0.5),
    )


@dataclass
class JudgeConfig(RoleConfig):
    axes: list[Any] = item([], "what it scores from 0 to 4: {name, weight, rubric}, weights sum to 1 (group roles)")


@dataclass
class EndpointConfig:
    model: str | None = item(None, "name of the model that plays the roles with client=openai; a role may have its own")
    base_url: Any = item(
        None,
        "URL of the endpoint up to /v1, or a list of URLs with the same model, among which trees are shared out; "
        "null = OPENAI_BASE_URL, or OpenAI's own",
        method=False,
    )
    serve: str | None = item(
        None,
        "GGUF file that llama.cpp serves for the time of the run, in place of base_url; auto = that of llm.local.model",
    )
    slots: int = item(16, "serve: calls that the server works on at the same time", within=COUNT, affects=SPEED)
    context_tokens: int = item(32768, "serve: tokens of the calls of all slots together", within=COUNT, affects=SPEED)
    threads: int | None = item(None, "serve: threads; null = one for each core", within=COUNT, affects=SPEED)
    key_variable: str = item("OPENAI_API_KEY", "environment variable that holds the key", affects=PLACE)
    timeout: float = item(
        60.0,
        "seconds until a try is given up; doubles for a call that timed out",
        within=(0.01, float("inf")),
        affects=SPEED,
    )
    attempts: int = item(8, "tries of a call that fails in a way that may pass", within=COUNT, affects=SPEED)
    calls_at_once: int | None = item(
        None, "calls that one URL gets at the same time; null = search.concurrency", within=COUNT, affects=SPEED
    )
    structured: bool = item(True, "send JSON schemas; false for servers without structured output")
    ratings: str = item(
        "written",
        "how ratings, scores and choices are read: as they are written; or as expected values over the alternatives to "
        "tokens that the endpoint serves (top_logprobs), a call for each number, the server going on with the name of "
        "what is rated (continued: vLLM, SGLang, llama.cpp), or asked for it by the prompt (asked: OpenAI)",
        choices=("written", "continued", "asked"),
    )
    seeds: bool = item(True, "send the seed of a draw")
    extra_body: dict[str, Any] = item({}, "further fields of each request: {field: value}; no secrets, they are kept")
    token_limit: str = item("max_tokens", "field that carries max_tokens; newer OpenAI models want the other one",
                            choices=("max_tokens", "max_completion_tokens"), method=False)  # fmt: skip
    price_in: float = item(
        0.0, "US dollars per million tokens that are read", within=FROM_ZERO, affects=looks(*ASKED, "judge")
    )
    price_out: float = item(
        0.0, "US dollars per million tokens that are written", within=FROM_ZERO, affects=looks(*ASKED, "judge")
    )


@dataclass
class LocalConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: int = item(
        32, "completions that are written together, with 2048 tokens for each", within=COUNT, affects=SPEED
    )
    cache_tokens: int | None = item(
        None,
        "tokens of earlier prompts whose keys and values are kept (23 kB each in SmolLM2): 24576, or what 0.7 of the "
        "memory of the weights holds, if that is less. Talks that are held at once need room for each",
        within=COUNT,
        affects=SPEED,
    )
    repeatable: bool = item(
        True,
        "a float32 model computes in float64 while it plays, in twice the time and memory, so that its answers do not "
        "depend on what is computed beside them",
    )


@dataclass
class LLMConfig:
    name: str = item(MISSING, "short name, used in run names", affects=LOOKS)
    wording: dict[str, Any] = item(
        {},
        "texts of the prompts of all roles, with {slots} (group roles)",
        affects=results("search", "cards", "converse", "judge"),
    )
    strategist: StrategistConfig = section(StrategistConfig, results("search"))
    supporter: RoleConfig = section(RoleConfig, results("search", "extend", "converse"))
    seeker: RoleConfig = section(RoleConfig, results("search", "cards", "converse"))
    judge: JudgeConfig = section(JudgeConfig, results("search", "judge"))
    openai: EndpointConfig = field(default_factory=EndpointConfig)
    local: LocalConfig = field(default_factory=LocalConfig)


@dataclass
class BudgetConfig:
    calls: int | None = item(None, "calls of all models; null = no limit", within=FROM_ZERO)
    tokens: int | None = item(None, "tokens that they read and write", within=FROM_ZERO)
    cost: float | None = item(None, "US dollars, by llm.openai.price_in and price_out", within=FROM_ZERO)


@dataclass
class SearchConfig:
    seed: int = item(
        1, "seed of the search, apart from the run's seed so that runs share what was found", within=(0, 2**32 - 1)
    )
    dry_run: bool = item(
        False,
        "say how many calls, tokens, minutes and dollars it will take, about, and end; nothing is searched or kept",
        affects=SPEED,
    )
    split: str = item("train", "split whose dialogues are the seeds", choices=("train", "val", "test"))
    seeds: int | None = item(None, "number of seeds, the first of the split; null = all", within=COUNT)
    skip: int = item(0, "dialogues of the split before the first seed", within=FROM_ZERO)
    start: str = item(
        "first",
        "where in its seed dialogue a search begins: at the supporter's first decision, or at one drawn evenly, which "
        "covers all of a talk by small trees",
        choices=("first", "random"),
    )
    trees: int = item(32, "trees that are grown at the same time", within=COUNT, affects=SPEED)
    concurrency: int = item(64, "calls that are under way at the same time", within=COUNT, affects=SPEED)
    cache: bool = item(True, "keep answers for later searches, in cache_dir/requests.sqlite", affects=SPEED)
    budget: BudgetConfig = section(BudgetConfig, SPEED)
    judge_check: int = item(
        60,
        "given replies that the judge has to tell from foils of each kind before the search; 0 = do not ask",
        within=FROM_ZERO,
        affects=looks("search"),
    )
    seeker_check: int = item(
        100,
        "seeker turns that the search wrote, and of held-out dialogues, whose perplexity and repetition are measured",
        within=FROM_ZERO,
        affects=looks("search"),
    )
    pages: int = item(20, "trees that get an HTML page to look at", within=FROM_ZERO, affects=looks("search"))
