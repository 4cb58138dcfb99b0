"""Settings of the corpus and of the strategies that are modelled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from esc_lab.config.item import COUNT, FROM_ZERO, SPEED, TEST_SET, TRAININGS, item, looks, results

# Forms whose columns `conf/data/<name>.yaml` declares, in the order in which they are tried; "columns": data.columns.
FORMS = (
    "messages", "openai_preference", "sharegpt", "alpaca", "trl", "xtuner", "escot", "augesc", "annomi", "table",
    "smile", "transcript", "columns",
)  # fmt: skip
FORMATS = ("jsonl", "esconv", "extes", "esc_pro", *FORMS)  # of corpora
SPLITS = ("train", "val", "test")


@dataclass
class DataConfig:
    name: str = item(
        MISSING,
        "short name of the corpus, used in run names and cards",
        affects=looks("search", "extend", "export", *TRAININGS),
    )
    path: str | None = item(
        MISSING, "file, or directory with train/valid/test files; null = the sample corpus", path=True, method=False
    )
    format: str = item(
        "auto",
        "record format; auto looks at the first record, or takes data.columns",
        choices=("auto", *FORMATS),
        method=False,
    )
    hub: str | None = item(
        None,
        "stage=convert and stage=data: a data set of the Hugging Face hub (owner/name), or a directory of its files, "
        "in place of path",
        affects=results("convert", "data"),
    )
    subset: str | None = item(
        None, "configuration of the hub's data set; null = the default", affects=results("convert", "data")
    )
    revision: str | None = item(None, "branch, tag or commit of the hub's data set", affects=results("convert", "data"))
    columns: dict[str, Any] = item(
        {},
        "which column or key of a table or of JSON records holds what, e.g. {dialogue: id, speaker: who, text: said}",
        method=False,
    )
    roles: dict[str, Any] = item(
        {},
        "who speaks under a name in the file, where it is not known: {T: supporter, P: seeker, narrator: null}, null = "
        "neither",
        method=False,
    )
    inventory: str | None = item(
        None,
        "read all labels of the corpus as this inventory's, e.g. of ESC-Pro that a search with it wrote; null = as the "
        "record or the format says",
        measures=TEST_SET,
        method=False,
    )
    labels: dict[str, Any] = item(
        {},
        "how labels of the corpus are read, e.g. {Greeting: Others}: a strategy of its inventory, or null for none",
        measures=TEST_SET,
    )
    unknown: str = item(
        "error",
        "labels that the corpus' inventory does not know: drop leaves their turns unlabelled, and counts them",
        choices=("error", "drop"),
        measures=TEST_SET,
    )
    too_long: str = item(
        "error",
        "replies that exceed row_tokens even with the shortest history: drop leaves them out, and counts them",
        choices=("error", "drop"),
        affects=results(*TRAININGS, "evaluate"),
        measures=TEST_SET,
        method=False,
    )
    overlap: str = item(
        "error",
        "the same trees in two splits, or in the evaluated split and in the training of the evaluated model",
        choices=("error", "allow"),
        method=False,
    )
    licence: str | None = item(
        None,
        "licence of the corpus, for cards; null = not stated",
        affects=looks("search", "extend", "export", *TRAININGS),
    )
    merge: str = item("set", "join consecutive supporter turns: keep apart, label of the first, set of labels",
                      choices=("none", "first", "set"), measures=TEST_SET)  # fmt: skip
    split: str = item(
        "auto",
        "published = the files of a directory; proportion = by tree_id; auto = published for a directory",
        choices=("auto", "published", "proportion"),
        measures=TEST_SET,
    )
    proportions: dict[str, float] = item(
        {"train": 0.8, "val": 0.1, "test": 0.1},
        "share of the trees in each split; one left out gets none",
        measures=TEST_SET,
    )
    split_seed: int = item(0, "seed of the proportional split, apart from the run's seed", measures=TEST_SET)
    limit: dict[str, int] = item({}, "keep the first n dialogues of a split, e.g. {test: 20}", measures=TEST_SET)
    row_tokens: int = item(
        2048,
        "longest sequence in tokens: of longer talks the oldest turns are left out; also the token budget of one "
        "packed row, if pass_tokens is not larger",
        within=(16, math.inf),
        affects=results(*TRAININGS, "evaluate", "data"),
        method=False,
    )
    pass_tokens: int | None = item(
        None,
        "token budget of one packed row, as far as it is more than row_tokens; null = 8192 on a GPU, row_tokens "
        "elsewhere",
        within=COUNT,
        affects=SPEED,
    )
    side: str = item(
        "supporter",
        "sft: whose turns are trained on; a seeker learns to play seekers of a search (llm.seeker.checkpoint)",
        choices=("supporter", "seeker"),
        affects=results("sft"),
    )
    loss: str = item(
        "all_replies",
        "sft, classifier: which replies of a supporter are trained on: all with a strategy, or the last of each "
        "dialogue, with or without one, as in what stage=extend leaves",
        choices=("all_replies", "last_reply"),
        affects=results("sft", "classifier"),
    )
    step_dialogues: int = item(8, "dialogues in one optimizer step of sft", within=COUNT, affects=results("sft"))
    step_pairs: int = item(
        32, "preference pairs (KTO: replies) in one optimizer step of cso", within=COUNT, affects=results("cso")
    )
    seed_fraction: float = item(1.0, "share of the training trees that is used, nested: for scaling curves",
                                within=(1e-6, 1))  # fmt: skip
    negatives: str = item(
        "recorded",
        "rejected replies of cso: those of the records, or the model's own replies under its most probable wrong "
        "strategies (gold_contrast, no CSO) or under random other ones",
        choices=("recorded", "gold_contrast", "random"),
        affects=results("cso", "reward"),
    )
    negatives_per_turn: int = item(
        3,
        "rejected replies that the model writes for each supporter turn",
        within=COUNT,
        affects=results("cso", "reward"),
    )
    negatives_dialogues: int | None = item(
        None,
        "cso: only the first dialogues of each split get such replies and are trained on; null = all",
        within=COUNT,
        affects=results("cso"),
    )
    negatives_tokens: int = item(
        64, "longest reply that the model writes, in tokens", within=COUNT, affects=results("cso", "reward")
    )
    negatives_temperature: float = item(
        0.0, "sampling temperature of these replies; 0 = greedy", within=FROM_ZERO, affects=results("cso", "reward")
    )
    shuffle_pairs: bool = item(
        False,
        "cso: a coin says which reply of a pair is the chosen one; the control of what pairs say",
        affects=results("cso"),
    )
    balance_pairs: bool = item(
        False,
        "cso: leave out pairs until each strategy is chosen as often as it is rejected, so that only the talk tells "
        "which is better",
        affects=results("cso"),
    )
    balance_strategies: int | None = item(
        None,
        "sft with data.loss=last_reply: an epoch has as many replies as there are, but each strategy as often as the "
        "others, and no reply more often than this; null = each reply once",
        within=COUNT,
        affects=results("sft"),
    )
    strategy_weights: dict[str, float] = item(
        {}, "loss weight of replies per strategy; 1 where not named", affects=results("sft", "cso")
    )
    label_weight: float = item(
        1.0,
        "sft: weight of the strategy label's tokens in the loss against those of the text (for stage=cso: "
        "objective.strategy_weight)",
        within=FROM_ZERO,
        affects=results("sft"),
    )


@dataclass
class InventoryConfig:
    """The strategies: `conf/inventory`, one file an inventory (docs/data-format.md)."""

    name: str = item(
        "esconv", "strategies that are modelled; a corpus with other labels is mapped onto them", method=False
    )
    strategies: list[Any] = item(
        [],
        "in the order of their class indices: {name, definition, spellings: [other spellings of the name]}",
        method=False,
    )
    mappings: dict[str, Any] = item(
        {},
        "how labels of other inventories are read: inventory -> {its name: name here, or null for no counterpart}",
        method=False,
    )
    formats: list[str] = item(
        [], "corpus formats (data.format) whose labels are of this inventory", choices=FORMATS, method=False
    )
    example: list[Any] = item(
        [],
        "what prompt.inference=with_example shows: exchanges {seeker, strategy, supporter}",
        affects=results("evaluate"),
        method=False,
    )
    examples: list[Any] = item(
        [],
        "what extend.examples shows of a prompted strategy: exchanges {seeker, strategy, supporter}",
        affects=results("extend"),
        method=False,
    )
    cues: dict[str, Any] = item(
        {},
        "what extend.source=corpus finds strategies by: strategy -> regular expressions that tell a sentence of it",
        affects=results("extend"),
        method=False,
    )
