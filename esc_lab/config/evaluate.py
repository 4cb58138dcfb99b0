"""Settings of evaluations, of studies of attention, and of the classifier that judges adherence."""

from __future__ import annotations

from dataclasses import dataclass, field

from esc_lab.config.item import COUNT, FROM_ZERO, SHARE, SPEED, TEST_SET, item, looks

# Metrics by their names, or by those of the counts that they are means over.
WRITTEN = ("generated/", "text/replies", "text/written")
ANSWERED = (*WRITTEN, "sra/", "adherence/")  # of replies that the model writes
PROMPTED = ("text/", "sra/", "adherence/")  # under a template that names the strategy
BOOSTED_SPANS = ("name", "instruction", "neutral", "neutral_instruction", "history")


@dataclass
class GenerationConfig:
    enabled: bool = item(True, "generate replies for the text metrics", measures=WRITTEN)
    decisions: int | None = item(
        None, "generate for this many decisions, drawn with the seed; null = all", within=COUNT, measures=ANSWERED
    )
    depths: list[int] = item(
        [],
        "turns before the reply at which the strata begin that the decisions are drawn from, and where the last one "
        "ends: equally many of each; empty = drawn from all decisions alike",
        measures=ANSWERED,
    )
    max_new_tokens: int = item(96, "longest generated reply in tokens", within=COUNT, measures=ANSWERED, method=True)
    temperature: float | None = item(0.0, "sampling temperature; 0 = greedy, null = not sent to an endpoint",
                                     within=FROM_ZERO, measures=ANSWERED, method=True)  # fmt: skip
    top_p: float | None = item(1.0, "nucleus sampling mass; null = not sent to an endpoint", within=(1e-6, 1),
                               measures=ANSWERED, method=True)  # fmt: skip
    no_repeat: int = item(0, "write no run of so many tokens twice in a reply, as small models are prone to; 0 = any",
                          within=FROM_ZERO, measures=ANSWERED, method=True)  # fmt: skip
    samples: int = item(1, "replies to each prompt, each with its own seed; more than 1 needs a temperature",
                        within=COUNT, measures=ANSWERED, method=True)  # fmt: skip
    batch: int = item(16, "replies decoded together", within=COUNT, affects=SPEED)
    top_logprobs: int = item(
        20,
        "model=endpoint: alternatives to each token of a reply that are asked for, from which the probabilities of "
        "strategies are read; 0 = none, for servers without them",
        within=(0, 20),
        measures=("strategy/",),
    )


@dataclass
class BestOfConfig:
    """Of `prompt.inference=best_of_n`: how the replies that one is chosen from are drawn, and who chooses."""

    reward: str | None = item(None, "best_of_n: run of stage=reward whose model chooses the reply", path=True)
    replies: int = item(8, "best_of_n: replies to each prompt that one is chosen from", within=(2, float("inf")),
                        method=True)  # fmt: skip
    temperature: float = item(0.8, "best_of_n: sampling temperature", within=(1e-6, float("inf")), method=True)
    top_p: float = item(0.95, "best_of_n: nucleus sampling mass", within=(1e-6, 1), method=True)


@dataclass
class SRAConfig:
    enabled: bool = item(True, "measure Strategy-Relevant Attention (SRA) on the replies", measures=("sra/",))
    definition: str = item(
        "paper",
        "SRA by the paper's formula, as its published code computes it for a reply, or as in the paper's table, which "
        "is that of the first generated token",
        choices=("paper", "reference", "first_token"),
        measures=("sra/",),
    )
    span: str = item(
        "name",
        "what counts as the strategy: its name, the quoted name, that with the word strategy after it (the paper's "
        "table), or the name with its definition",
        choices=("name", "quoted", "quoted_strategy", "instruction"),
        measures=("sra/",),
    )
    heat_maps: int = item(
        1, "replies drawn over their prompts as HTML pages", within=FROM_ZERO, affects=looks("evaluate")
    )


@dataclass
class BoostConfig:
    """A boost of attention on a span of prompts that name the strategy."""

    mode: str = item(
        "add",
        "what becomes of attention on the span: amount is added to its logits (InstABoost), it gets the share amount "
        "at least (Spotlight), or it is blocked",
        choices=("add", "share", "block"),
    )
    amount: float = item(
        0.0, "add: what is added to the logits, which multiplies attention by exp(amount); share: from 0 to below 1; "
        "0 = no boost, unless mode=block")  # fmt: skip
    span: str = item(
        "name",
        "the span: name of the strategy, instruction (name with its definition); of the neutral instruction, from its "
        "phrase on, as many tokens as the name has (neutral) or as the instruction has (neutral_instruction); or as "
        "many as the name has of a message of the history, drawn by dialogue and turn",
        choices=BOOSTED_SPANS,
    )
    queries: str = item(
        "all", "whose attention: of all tokens after the span, or of those that predict the reply, which SRA is of",
        choices=("all", "reply"))  # fmt: skip
    layers: list[int] = item([], "layers that it acts in, from 0; empty = all")
    heads: list[int] = item([], "heads of these layers, from 0; empty = all")
    choice: str = item(
        "all",
        "which of these heads: all, or boost.count of them, with the highest correlation with adherence or the most "
        "attention on the strategy in boost.study, or at random",
        choices=("all", "adherence", "attention", "random"),
    )
    count: int = item(16, "choice other than all: number of heads", within=COUNT)
    study: str | None = item(None, "choice=adherence, attention: run of experiment=sra_heads", path=True)
    matched: str | None = item(
        None,
        "choice=random: draw none of the heads that this choice takes, and as many in each layer, as far as it has "
        "them; null = any heads",
        choices=("adherence", "attention"),
    )
    draw: int = item(1, "choice=random: number of the draw", within=COUNT)

    @property
    def active(self) -> bool:
        """Whether there is a boost at all."""
        return self.mode == "block" or self.amount != 0

    @property
    def chooses(self) -> str | None:
        """How heads of a study are taken, to be boosted or left out; None where no study has a say."""
        return {"all": None, "random": self.matched}.get(self.choice, self.choice)


@dataclass
class EvaluateConfig:
    split: str = item("test", "which split is evaluated", choices=("train", "val", "test"), measures=TEST_SET)
    score_opening: bool = item(False, "score supporter turns before the first seeker turn too", measures=TEST_SET)
    min_turns: int = item(
        0, "only supporter turns with at least this many turns before them", within=FROM_ZERO, measures=TEST_SET
    )
    history_turns: int | None = item(
        None, "show this many of the last turns at most, from where the seeker begins; null = all", within=COUNT
    )
    likelihood: bool = item(
        True,
        "score the gold replies and the strategies by their log-probabilities",
        measures=("strategy/", "text/perplexity"),
    )
    prompted: str = item(
        "gold",
        "strategies that a template names which leaves no choice: that of the gold reply, all of the inventory, or "
        "each with probability prompted_share (at least one); all and random need no gold label",
        choices=("gold", "all", "random"),
        measures=PROMPTED,
    )
    prompted_share: float = item(0.25, "prompted=random: probability of each strategy", within=SHARE, measures=PROMPTED)
    replies: str = item("generated", "replies that attention and adherence are measured on: written, or gold",
                        choices=("generated", "gold"), measures=("sra/", "adherence/"))  # fmt: skip
    classifier: str | None = item(
        None,
        "judge of strategy adherence: a run of stage=classifier or a directory of a sequence classifier; auto = one "
        "that is trained on the training dialogues and kept; null = nobody judges",
        measures=("adherence/",),
    )
    share_states: bool = item(
        False,
        "with adapter.layers: keep the states of the layers below the adapters in the cache, which evaluations of "
        "other checkpoints on the same dialogues start from; 1 to 8 kB a token",
        affects=SPEED,
    )
    sra: SRAConfig = field(default_factory=SRAConfig)
    boost: BoostConfig = field(default_factory=BoostConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    best_of: BestOfConfig = field(default_factory=BestOfConfig)


@dataclass
class SRAStudyConfig:
    study: str = item(
        "templates",
        "what is compared: prompt templates, strategies, heads, a model before and after fine-tuning, lengths of the "
        "history, doses of a boost of attention, attention blocked, or the turns of whole talks as they were written",
        choices=("templates", "strategies", "heads", "finetuned", "lengths", "boost", "ablate", "turns"),
    )
    talks: list[str] = item(
        [], "study=turns: run directories of stage=converse; their model, checkpoint and prompts are taken from them"
    )
    templates: list[str] = item([], "prompt layouts that are evaluated; they name the strategy")
    lengths: list[int] = item([1, 3, 5, 7, 9], "study=lengths: turns of history that the prompts show")
    doses: list[float] = item([0.5, 1, 2, 3], "study=boost: amounts of the boost, beside none")
    spans: list[str] = item(
        [*BOOSTED_SPANS], "study=boost, ablate: spans that are boosted or blocked", choices=BOOSTED_SPANS
    )
    choices: list[str] = item(
        ["all"], "study=boost, ablate: heads that it is done in, as evaluate.boost.choice",
        choices=("all", "adherence", "attention", "random"))  # fmt: skip
    random_draws: int = item(
        3,
        "choices with random: how often heads are drawn, none of those of the choices beside it, as many in each layer",
        within=COUNT,
    )
    draws: int = item(1000, "bootstrap draws of dialogues", within=COUNT)


@dataclass
class ClassifierConfig:
    batch: int = item(16, "replies in one optimizer step of the classifier", within=COUNT)
    reply_tokens: int = item(256, "longest reply that it reads, in tokens; the rest is cut off and counted",
                             within=COUNT)  # fmt: skip
