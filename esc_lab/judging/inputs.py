"""What stage `judge` judges: replies of evaluations of one test set, with the dialogues that they were written in.

A model must not be scored by the judge that it was made for, so the searches behind each run are looked up, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.comparison.runs import Run
from esc_lab.config import Config
from esc_lab.config.search import LOADED
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.judging.evaluations import choose_baseline, read_evaluations
from esc_lab.metrics.prediction_table import Key
from esc_lab.metrics.predictions import read_predictions
from esc_lab.runs.layout import PREDICTIONS, Settings, find_run, read_config
from esc_lab.runs.lineage import find_rewards, find_searches, find_training_trees
from esc_lab.scorers.reward_files import identify_reward
from esc_lab.search.clients.replay import find_recordings
from esc_lab.search.journal import read_journal_config
from esc_lab.seeds import EVALUATION_SEED, derive_seed

NOTHING = "(no message)"
_DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")


@dataclass(frozen=True)
class JudgeModel:
    """A model as a configuration names it.

    Attributes:
        names: lower case; a model of a hub or endpoint without its owner and without a date behind its name.
        checkpoint: the trained weights on it; None for the model as it came.
        reward: of a reward model, what tells it apart (`identify_reward`).
    """

    names: frozenset[str]
    checkpoint: str | None = None
    reward: str | None = None

    def same(self, other: JudgeModel) -> bool:
        if self.reward and other.reward:
            return self.reward == other.reward
        return bool(self.names & other.names) and self.checkpoint == other.checkpoint

    def __str__(self) -> str:
        return " / ".join(sorted(self.names)) + (f" with {self.checkpoint}" if self.checkpoint else "")


@dataclass(frozen=True)
class WrittenReply:
    """What a run wrote at a decision of a dialogue of this tree.

    Attributes:
        text: stripped; may be empty.
        strategy: the one that it was to follow or that it names; None if it names none.
        prompted: the one that it was to follow; None where the model chose.
        gold_reply: the corpus' own reply there.
    """

    text: str
    strategy: str | None
    gold_reply: str
    tree: str
    sampling: Mapping[str, Any]
    prompted: str | None = None

    @property
    def turn(self) -> Turn:
        """As the judge sees it."""
        return Turn("supporter", Reply(self.text or NOTHING, (self.strategy,) if self.strategy else ()))


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation: its label (model, method, template, and the seed where there are several) and its replies."""

    label: str
    run: Run
    replies: Mapping[Key, WrittenReply]


@dataclass(frozen=True)
class JudgeInputs:
    """What is judged.

    Attributes:
        runs: the evaluations; `baseline` is one of them.
        dialogues: those of the test set, by id.
        keys: the decisions that are judged, in every run the same, drawn with `seed`.
        with_replies: decisions that have a reply in every run.
        test_set: identity of the test set, as in comparisons.
        conflicts: why the judge must not judge: sentences on runs that were made to please it, and on dialogues that
            it was trained on.
        remarks: sentences on what stands out.
    """

    runs: Sequence[EvaluatedRun]
    baseline: EvaluatedRun
    inventory: Inventory
    dialogues: Mapping[str, Dialogue]
    keys: Sequence[Key]
    with_replies: int
    test_set: str
    seed: int
    judge: JudgeModel
    conflicts: Sequence[str]
    remarks: Sequence[str]

    @property
    def candidates(self) -> list[EvaluatedRun]:
        return [run for run in self.runs if run is not self.baseline]

    @property
    def trees(self) -> list[str]:
        return [self.baseline.replies[key].tree for key in self.keys]

    def history(self, key: Key) -> tuple[Turn, ...]:
        return build_history(self.dialogues[key[0]], key[1])


def read_inputs(cfg: Config) -> JudgeInputs:
    """Read everything.

    Raises:
        UserError: see `read_evaluations`; or a run has no replies, or there is no such baseline.
    """
    evaluations = read_evaluations(cfg.judge.runs, "judge.runs", cfg.config_dirs)
    test, dialogues = evaluations.test, evaluations.dialogues
    judged = [
        EvaluatedRun(label, run, read_replies(run.directory / PREDICTIONS, prompted=_asks_adherence(cfg)))
        for run, label in evaluations.labels.items()
    ]
    for run in judged:
        check_context(dialogues, run.replies, str(run.run.directory))
    shared, few = _find_shared_decisions(judged, test.keys)
    baseline = choose_baseline(evaluations, cfg.judge.baseline, "judge.baseline")
    judge = judge_model(asdict(cfg))
    conflicts, lineage = check_lineage({run.label: run.run.directory for run in judged}, judge)
    evaluated = {dialogue for dialogue, _ in test.keys}
    conflicts += _check_seen(judge, [dialogues[name] for name in sorted(evaluated)])
    return JudgeInputs(
        runs=judged,
        baseline=next(run for run in judged if run.label == baseline),
        inventory=evaluations.inventory,
        dialogues={name: dialogue for name, dialogue in dialogues.items() if name in evaluated},
        keys=draw_decisions(shared, cfg.judge.decisions, cfg.seed),
        with_replies=len(shared),
        test_set=test.identity,
        seed=cfg.seed,
        judge=judge,
        conflicts=conflicts,
        remarks=[*evaluations.remarks, *few, *lineage],
    )


def _find_shared_decisions(runs: Sequence[EvaluatedRun], keys: Sequence[Key]) -> tuple[list[Key], list[str]]:
    """The decisions with a reply in every run, and a remark if that is few; a UserError if there are none.

    Replies to prompts that name different strategies are not compared.
    """
    shared = [
        key
        for key in keys
        if all(key in run.replies for run in runs) and len({run.replies[key].prompted for run in runs} - {None}) < 2
    ]
    if not shared:
        fix = "evaluate all with the same seed and evaluate.generation.decisions"
        raise UserError("there is no decision to which every run wrote a reply", where="judge.runs", fix=fix)
    smallest = min(len(run.replies) for run in runs)
    if len(shared) >= 0.5 * smallest:
        return shared, []
    remark = f"only {len(shared)} decisions have a reply of every run, of {smallest} or more that each replied to"
    return shared, [f"{remark}; their evaluations chose different ones"]


def _asks_adherence(cfg: Config) -> bool:
    return cfg.judge.pairwise and cfg.judge.question == "adherence"


def read_replies(path: Path, *, prompted: bool = False) -> dict[Key, WrittenReply]:
    """The replies in a `predictions.jsonl`, one of each decision: of several samples the first.

    Of several prompts it is the gold strategy's. Where the gold reply has none it is one that is drawn by dialogue and
    turn, the same in every run that has all of them.

    Args:
        prompted: only of prompts that name a strategy, each as likely as the others, whichever the gold one is.

    Raises:
        UserError: a line is not a prediction, or there is no reply.
    """
    replies: dict[Key, tuple[int, WrittenReply]] = {}
    for p in read_predictions(path):
        if p.reply is None or p.sample > 0 or (p.prompted is None if prompted else not p.to_gold):
            continue
        drawn = prompted or not p.gold
        rank = derive_seed(EVALUATION_SEED, "prompt to judge", p.dialogue, p.turn, p.prompted) if drawn else 0
        reply = WrittenReply(p.reply.strip(), p.followed, p.gold_reply, p.tree, p.sampling, p.prompted)
        key = (p.dialogue, p.turn)
        if key not in replies or rank < replies[key][0]:
            replies[key] = rank, reply
    if not replies:
        template = "a template that names the strategy" if prompted else "evaluate.prompted=gold"
        fix = f"evaluate with evaluate.generation.enabled=true and {template}"
        what = "prompt that names a strategy" if prompted else "gold strategy"
        raise UserError(f"there is no written reply to a {what}", where=str(path), fix=fix)
    return {key: reply for key, (_, reply) in replies.items()}


def check_lineage(runs: Mapping[str, Path], judge: JudgeModel) -> tuple[list[str], list[str]]:
    """Sentences on runs that the judge had a part in, and on what else stands out in how they were made.

    Args:
        runs: directories of evaluations, or of whole talks, by label.
    """
    conflicts, remarks = [], []
    for label, directory in runs.items():
        searches, lost = find_searches(directory)
        for search in searches:
            try:
                other = judge_model(read_config(search))
            except READ_ERRORS as error:
                remarks.append(f"{search}, which {label} was trained on, does not say who judged it ({error!r})")
                continue
            if judge.same(other):
                conflicts.append(f"{judge} judged the search {search}, on whose data {label} was trained")
        for user, reward in find_rewards(directory) if judge.reward else ():
            if identify_reward(reward) == judge.reward:
                chose = user == directory
                what = f"chose the replies of {label}" if chose else f"gave the values that {label} was trained with"
                conflicts.append(f"{judge} {what}")
        if lost:
            gone = f"the training behind {label} is gone ({', '.join(lost)})"
            remarks.append(f"{gone}: whether the judge had a part in it is not known")
        if judge.names & _written_by(read_config(directory)):
            remarks.append(f"the judge is the model that {label} is made of; models favour their own words")
    return conflicts, remarks


def _written_by(config: Settings) -> frozenset[str]:
    """Names of the model that wrote the replies of an evaluation, or played the supporter of talks."""
    supporter = config["llm"]["supporter"] if config["stage"] == "converse" else {"client": "local"}
    if supporter["client"] in LOADED:
        return model_names(config["model"])
    return _names(supporter["model"] or config["llm"]["openai"]["model"])


def _check_seen(judge: JudgeModel, dialogues: Sequence[Dialogue]) -> list[str]:
    """A sentence if a reward model was trained on some of the dialogues, whose given replies it then knows."""
    run = find_run(Path(judge.checkpoint or "")) if judge.reward else None
    trees = find_training_trees(run) if run else {}
    seen = sum(dialogue.tree_id in trees for dialogue in dialogues)
    return [f"{judge} was trained on {seen} of the {len(dialogues)} dialogues"] if seen else []


def draw_decisions(keys: Iterable[Key], count: int | None, seed: int) -> list[Key]:
    """The decisions to judge, sorted: all, or `count` of them. A larger count has those of a smaller one among its."""
    order = sorted(keys, key=lambda key: (derive_seed(seed, "decisions to judge", *key), key))
    return sorted(order[:count])


def build_history(dialogue: Dialogue, turn: int) -> tuple[Turn, ...]:
    """The turns before a reply, as the judge sees them: without rejected replies and an opening by the supporter."""
    turns = [Turn(before.speaker, before.reply) for before in dialogue.turns[:turn]]
    first = next((number for number, before in enumerate(turns) if before.speaker == "seeker"), 0)
    return tuple(turns[first:])


def check_context(dialogues: Mapping[str, Dialogue], replies: Mapping[Key, WrittenReply], where: str) -> None:
    """Raises a UserError if a dialogue of a reply is missing, or has another gold reply at the decision."""

    def gold_reply(name: str, turn: int) -> str | None:
        turns = dialogues[name].turns if name in dialogues else ()
        return turns[turn].reply.text if turn < len(turns) else None

    wrong = [key for key, reply in replies.items() if gold_reply(*key) != reply.gold_reply]
    if wrong:
        fix = "evaluate again, which keeps the dialogues beside the predictions; or put the corpus back where it was"
        message = f"the dialogues of {len(wrong)} of {len(replies)} replies are not those that were evaluated"
        raise UserError(message, where=where, fix=fix)


def judge_model(config: Mapping[str, Any]) -> JudgeModel:
    """The model that plays the judge in a run with this configuration.

    Raises:
        LookupError, TypeError: it is no configuration of a search or of a judge, or its recording is no journal.
        OSError: the recording cannot be read.
    """
    llm = config["llm"]
    played = llm["judge"]
    if played["client"] == "replay":
        recorded = read_journal_config(find_recordings(Path(played["recording"]))[0])
        return JudgeModel(_names(recorded["roles"]["judge"]["client"]["model"]))
    if played["client"] == "openai":
        return JudgeModel(_names(played["model"] or llm["openai"]["model"]))
    checkpoint = str(Path(played["checkpoint"]).resolve()) if played["checkpoint"] else None
    names = _names(played["model"]) if played["model"] else model_names(llm["local"]["model"])
    reward = identify_reward(Path(played["checkpoint"])) if played["client"] == "reward" else None
    return JudgeModel(names, checkpoint, reward)


def model_names(model: Mapping[str, Any]) -> frozenset[str]:
    """Names of a model that is loaded here, from its settings."""
    return _names(model.get("name"), model.get("path"))


def _names(*names: str | None) -> frozenset[str]:
    return frozenset(
        str(Path(name).resolve()) if Path(name).is_dir() else _DATE.sub("", name.rstrip("/").rsplit("/", 1)[-1].lower())
        for name in names
        if name and name != "???"
    )
