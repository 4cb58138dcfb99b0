"""One optimizer step of CSO: its loss and gradient are the mean over all pairs of the step, however it is computed."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from esc_lab.config.training import AdapterConfig, ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Reply
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.models.load import add_adapter, model_identity
from esc_lab.prompts import Message, build_prompt, load_layout, reply_content
from esc_lab.training.cso import CSOModule
from esc_lab.training.objectives import balance_weights
from esc_lab.training.preference_split import balance_pairs
from esc_lab.training.reference import LiveReference, score_replies, stored_log_probs
from tests.conftest import CACHE, model_config
from tests.training.modules import data_module, one_step_trainer

RATE = 0.05
BETA = 0.1
# Of float64 models: what is left in float32 by design are the softmax of attention and the rotary angles.
ATOL = 1e-6
ESCONV = load_inventory("esconv")


def preference_data(encoder, dialogues, *, validation=(), objective=None, **settings):
    """A data module of preferences that is ready to train, by default all of them in one step."""
    objective = ObjectiveConfig(**(objective or {}))
    splits = {"train": dialogues, "val": list(validation)}
    data = data_module(splits, encoder, objective=objective, **{"step_pairs": 1000, **settings})
    data.setup("fit")
    return data


def written_out(loaded, dialogues):
    """(messages, chosen, rejected) of every pair, from the dialogues alone."""
    cso = load_layout("cso")
    for dialogue in dialogues:
        for number in dialogue.decisions():
            turn = dialogue.turns[number]
            prompt = loaded.encoder.adapt(build_prompt(cso, ESCONV, dialogue, number, history_labels=True))
            for other in turn.rejected:
                yield (
                    prompt.messages,
                    reply_content(cso, turn.reply.text, turn.reply.strategies),
                    reply_content(cso, other.text, other.strategies),
                )


def log_prob(model, encoder, messages, content):
    """Log-probability of one reply by the model's own forward pass, and its number of tokens."""
    chat = encoder.encode([*messages, Message("assistant", content)])
    start, end = chat.replies[len(messages)]
    ids = torch.from_numpy(chat.input_ids[:end])
    logits = model(input_ids=ids[None], logits_to_keep=end - start + 1).logits[0]
    steps = torch.log_softmax(logits[:-1], dim=-1)
    return steps.gather(1, ids[start:end, None]).sum(), end - start


def perturbed(model):
    """A copy that differs a little, so that policy and reference do."""
    other = copy.deepcopy(model).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    return other


def step(policy, reference, data, tmp_path, objective, batch_numbers=None):
    """Parameters after one plain SGD step over all comparisons, and the logged values."""
    for split in data.steps.preferences.values():
        split.reference = None
    module = CSOModule(
        policy,
        objective,
        OptimizerConfig(name="sgd", lr=RATE),
        SchedulerConfig("constant", warmup=0),
        0.0,
        1,
        reference,
    )
    trainer = one_step_trainer(tmp_path)
    trainer.fit(module, datamodule=data)
    return dict(policy.named_parameters()), trainer.callback_metrics


class Frozen:
    """A reference model beside the policy."""

    def __init__(self, model):
        self.model = model

    def __call__(self):
        import contextlib

        @contextlib.contextmanager
        def without_gradients():
            with torch.no_grad():
                yield self.model

        return without_gradients()


def test_step_is_the_mean_over_all_pairs(tiny_models, family, sample_dialogues, tmp_path):
    """In one row, and in several; in float64, where nothing but a wrong formula shows."""
    loaded = tiny_models(family)
    initial = copy.deepcopy(loaded.model).double()
    dialogues = [replace(dialogue, turns=dialogue.turns[:6]) for dialogue in sample_dialogues[:2]]
    brute = perturbed(initial)

    @cache  # pairs of a turn have the same chosen reply
    def ratio(messages, content):
        with torch.no_grad():
            expected, _ = log_prob(initial, loaded.encoder, messages, content)
        return log_prob(brute, loaded.encoder, messages, content)[0] - expected

    losses = [
        -F.logsigmoid(BETA * (ratio((*messages,), chosen) - ratio((*messages,), rejected)))
        for messages, chosen, rejected in written_out(loaded, dialogues)
    ]
    torch.stack(losses).mean().backward()
    assert len(losses) == 6
    for row_tokens in (1100, 4096):
        data = preference_data(loaded.encoder, dialogues, row_tokens=row_tokens)
        after, logged = step(copy.deepcopy(brute), Frozen(initial), data, tmp_path, ObjectiveConfig(beta=BETA))
        rows = data.steps.step_batch(range(len(losses))).rows
        assert (len(rows) > 1) == (row_tokens == 1100)
        assert sum(len(row.chosen) for row in rows) == len(losses)
        assert float(logged["train/loss"]) == pytest.approx(float(torch.stack(losses).mean().detach()), abs=ATOL)
        for name, parameter in brute.named_parameters():
            got = (parameter - after[name]).detach() / RATE
            np.testing.assert_allclose(got, parameter.grad, atol=ATOL, err_msg=name)


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(name="ipo", beta=0.2, normalisation="mean"),
        ObjectiveConfig(name="simpo", beta=2.0, gamma=0.5),
        ObjectiveConfig(name="orpo", lambda_=0.3),
        ObjectiveConfig(name="hinge", beta=0.3),
    ],
    ids=lambda objective: objective.name,
)
def test_objectives_get_the_right_log_probs(tiny_models, sample_dialogues, tmp_path, objective):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:1]
    policy = perturbed(loaded.model)
    expected = []
    with torch.no_grad():
        for messages, *contents in written_out(loaded, dialogues):
            (w, n_w), (v, n_v) = (log_prob(policy, loaded.encoder, messages, content) for content in contents)
            r_w, r_v = (log_prob(loaded.model, loaded.encoder, messages, content)[0] for content in contents)
            w, v, r_w, r_v = w.double(), v.double(), r_w.double(), r_v.double()
            match objective.name:
                case "ipo":
                    loss = ((w - r_w) / n_w - (v - r_v) / n_v - 1 / (2 * objective.beta)) ** 2
                case "simpo":
                    loss = -F.logsigmoid(objective.beta * (w / n_w - v / n_v) - objective.gamma)
                case "orpo":
                    odds = [p / n - torch.log1p(-torch.exp(p / n)) for p, n in ((w, n_w), (v, n_v))]
                    loss = -w / n_w - objective.lambda_ * F.logsigmoid(odds[0] - odds[1])
                case _:
                    loss = F.relu(1 - objective.beta * (w - r_w - v + r_v))
            expected.append(loss)
    data = preference_data(loaded.encoder, dialogues)
    _, logged = step(policy, Frozen(loaded.model), data, tmp_path, objective)
    assert float(logged["train/loss"]) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_kto_uses_every_reply_and_mismatched_ones(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:2]
    policy = perturbed(loaded.model)
    data = preference_data(loaded.encoder, dialogues, objective={"name": "kto"})
    split = data.steps.preferences["train"]
    replies = {}
    mismatched = []
    with torch.no_grad():
        for turn in split.turns:
            for index, sequence in enumerate(turn.replies):
                ids, start = torch.from_numpy(sequence.input_ids), sequence.replies[0].start
                values = []
                for model in (policy, loaded.model):
                    steps = torch.log_softmax(model(input_ids=ids[None]).logits[0].float(), dim=-1)
                    values.append(steps[start - 1 : -1].gather(1, ids[start:, None]).sum().double())
                if index == turn.mismatched:
                    mismatched.append(values[0] - values[1])
                else:
                    replies[sequence.replies[0].key] = (values[0] - values[1], turn.desirable[index])
    kl = torch.stack(mismatched).mean().clamp(min=0)
    decisions = sum(1 for dialogue in dialogues for _ in dialogue.decisions())
    rejected = sum(len(turn.rejected) for dialogue in dialogues for turn in dialogue.turns)
    assert len(mismatched) == decisions
    assert [good for _, good in replies.values()].count(True) == decisions
    assert len(replies) == decisions + rejected
    report = data.steps.counts["train"]
    assert (report.desirable, report.undesirable) == (decisions, rejected)
    larger = max(rejected, decisions)
    weight = {True: larger / decisions, False: larger / rejected}
    losses = [
        weight[good] * torch.sigmoid(-BETA * (r - kl) if good else BETA * (r - kl)) for r, good in replies.values()
    ]
    objective = balance_weights(ObjectiveConfig(name="kto", beta=BETA), report.desirable, report.undesirable)
    _, logged = step(policy, Frozen(loaded.model), data, tmp_path, objective)
    assert float(logged["train/loss"]) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert float(logged["train/kl_mismatched"]) == pytest.approx(float(kl), abs=1e-3)


def test_kto_takes_rejected_replies_that_stand_alone(tiny_models, sample_dialogues):
    """Of ESC-Pro's KTO records: a rejected reply after a history of its own, without a preferred one."""
    loaded, dialogue = tiny_models("llama"), sample_dialogues[0]
    history = [
        {"role": "user", "content": "I cannot sleep."},
        {"role": "assistant", "content": "(Information) Sleep is overrated."},
    ]
    lonely = replace(dialogue, meta={"unpaired_rejected": [history]})
    plain, more = (
        preference_data(loaded.encoder, [d], objective={"name": "kto"}).steps.preferences["train"]
        for d in (dialogue, lonely)
    )
    assert len(more.comparisons) == len(plain.comparisons) + 1
    (turn,) = [t for t in more.turns if "overrated" in loaded.encoder.decode(t.replies[0].input_ids)]
    assert turn.desirable == {0: False}
    assert turn.mismatched == 1
    pairs = preference_data(loaded.encoder, [lonely]).steps.preferences["train"]
    assert len(pairs.comparisons) == sum(len(turn.rejected) for turn in dialogue.turns)


def test_a_pair_that_dialogues_of_a_tree_share_counts_once(tiny_models, sample_dialogues):
    loaded, dialogue = tiny_models("llama"), sample_dialogues[0]
    cut = max(number for number, turn in enumerate(dialogue.turns) if turn.rejected)
    other = replace(dialogue, turns=dialogue.turns[:cut], meta={"copy": 1})
    alone = preference_data(loaded.encoder, [dialogue]).steps
    both = preference_data(loaded.encoder, [dialogue, other]).steps
    assert both.preferences["train"].comparisons.tolist() == alone.preferences["train"].comparisons.tolist()
    pairs = sum(len(turn.rejected) for turn in other.turns)
    assert both.counts["train"].shared_pairs == pairs > 0


@pytest.mark.parametrize("row_tokens", [1100, 4096])
@pytest.mark.parametrize("name", ["cso", "kto"])
def test_trees_that_begin_alike_count_each_on_its_own(tiny_models, sample_dialogues, tmp_path, name, row_tokens):
    """Equal replies of different trees are one reply of a row, but every pair and every mismatched reply counts."""
    loaded, dialogue = tiny_models("llama"), sample_dialogues[0]
    turns = tuple(
        replace(
            turn, reply=replace(turn.reply, value=0.9), rejected=tuple(replace(r, value=0.1) for r in turn.rejected)
        )
        for turn in dialogue.turns
    )
    again = replace(dialogue, turns=turns, tree_id="another", meta={"copy": 1})
    data = preference_data(loaded.encoder, [dialogue, again], row_tokens=row_tokens, objective={"name": name})
    split = data.steps.preferences["train"]
    batch = data.steps.step_batch(range(len(split.comparisons)))
    once = preference_data(loaded.encoder, [dialogue], row_tokens=row_tokens, objective={"name": name})
    assert len(split.comparisons) == 2 * len(once.steps.preferences["train"].comparisons)
    assert sum(len(row.chosen) for row in batch.rows) == len(split.comparisons)
    assert any(len(keys) > 1 for row in batch.rows for keys in row.row.keys)
    before = split.sum_replies(score_replies(loaded.model, split, row_tokens))
    assert not np.isnan(before).any()
    policy = perturbed(loaded.model)
    after = split.sum_replies(score_replies(policy, split, row_tokens))
    _, logged = step(
        policy,
        Frozen(loaded.model),
        data,
        tmp_path,
        ObjectiveConfig(name=name, desirable_weight=1.0, undesirable_weight=1.0),
    )
    first = split.first_reply[split.comparisons[:, 0]]
    ratios = (after - before).astype(np.float64)
    if name == "kto":
        others = split.first_reply[:-1] + [turn.mismatched for turn in split.turns]
        assert float(logged["train/kl_mismatched"]) == pytest.approx(max(ratios[others].mean(), 0), abs=1e-4)
        assert float(logged["train/kl"]) == pytest.approx(ratios[first + split.comparisons[:, 1]].mean(), abs=1e-4)
    else:
        values = np.concatenate([row.values for row in batch.rows])
        assert sorted(values[~np.isnan(values)].tolist()) == sorted(
            np.float32([0.9, 0.1] * (len(values) // 2)).tolist()
        )
        margins = ratios[first + split.comparisons[:, 1]] - ratios[first + split.comparisons[:, 2]]
        assert float(logged["train/loss"]) == pytest.approx(np.log1p(np.exp(-BETA * margins)).mean(), rel=1e-4)


def test_equal_pairs_and_values(tiny_models, sample_dialogues):
    loaded, dialogue = tiny_models("llama"), sample_dialogues[0]
    number = next(n for n, turn in enumerate(dialogue.turns) if turn.rejected)
    turn = dialogue.turns[number]
    chosen = replace(turn.reply, value=0.5)
    rejected = tuple(Reply(f"Reply {n}", ("Others",), value) for n, value in enumerate((0.0, 0.5, 0.9, None)))
    changed = replace(turn, reply=chosen, rejected=(*rejected, chosen))
    turns = tuple(replace(t, rejected=()) if n != number else changed for n, t in enumerate(dialogue.turns))
    dialogues = [replace(dialogue, turns=turns)]
    plain = preference_data(loaded.encoder, dialogues).steps
    report = plain.counts["train"]
    assert (report.equal_pairs_dropped, report.tied_pairs_dropped) == (1, 1)
    assert (report.pairs, report.unjudged_pairs, report.inverted_pairs) == (3, 1, 1)
    margin = preference_data(loaded.encoder, dialogues, objective={"value_margin": 1.0}).steps
    assert len(plain.preferences["train"].comparisons) == 3
    assert margin.preferences["train"].comparisons[:, 1:].tolist() == [[0, 1]]
    with pytest.raises(UserError, match=r"none of .* pairs has a value gap"):
        preference_data(loaded.encoder, sample_dialogues[:2], objective={"value_margin": 1.0})


def test_nothing_to_prefer(tiny_models, sample_dialogues):
    bare = [
        replace(dialogue, turns=tuple(replace(turn, rejected=()) for turn in dialogue.turns))
        for dialogue in sample_dialogues[:2]
    ]
    with pytest.raises(UserError, match=r"nothing to prefer.*gold_contrast"):
        preference_data(tiny_models("llama").encoder, bare)


def test_long_histories_are_shortened_alike(tiny_models, sample_dialogues):
    """Chosen and rejected replies follow the same, shortened, prompt, and a turn fits into a row."""
    loaded = tiny_models("llama")
    data = preference_data(loaded.encoder, sample_dialogues[:2], row_tokens=900)
    assert data.reports["train"].truncated_examples
    for turn in data.steps.preferences["train"].turns:
        prompts = {sequence.input_ids[: sequence.replies[0].start].tobytes() for sequence in turn.replies}
        assert len(prompts) == 1
    assert all(len(row.row) <= 900 for row in data.steps.step_batch(range(10)).rows)


def test_steps_hold_equal_numbers_of_pairs_and_whole_epochs(tiny_models, sample_dialogues):
    data = preference_data(tiny_models("llama").encoder, sample_dialogues[:6], step_pairs=8)
    total = len(data.steps.preferences["train"].comparisons)
    plans = [data.steps.plan_epoch(epoch) for epoch in range(2)]
    for plan in plans:
        assert sorted(number for part in plan for number in part) == list(range(total))
        assert {len(part) for part in plan} <= {total // len(plan), total // len(plan) + 1}
        assert max(map(len, plan)) <= 8
    assert plans[0] != plans[1]
    assert plans == [
        preference_data(data.encoder, sample_dialogues[:6], step_pairs=8).steps.plan_epoch(e) for e in range(2)
    ]


def test_rows_are_shared_out_among_processes(tiny_models, sample_dialogues):
    data = preference_data(tiny_models("llama").encoder, sample_dialogues[:4], row_tokens=1200)
    numbers = data.steps.plan_epoch(0)[0]
    whole = data.steps.step_batch(numbers)
    parts = [data.steps.step_batch(numbers, rank, 2) for rank in range(2)]
    assert sum(len(row.chosen) for part in parts for row in part.rows) == whole.comparisons == len(numbers)
    assert all(part.comparisons == whole.comparisons for part in parts)
    many = [data.steps.step_batch(numbers[:2], rank, 3) for rank in range(3)]
    assert [sum(len(row.chosen) for row in part.rows) for part in many] == [2, 0, 0]
    for together in (parts, many):
        assert len({len(part.rows) for part in together}) == 1


def test_mismatched_replies_are_shared_out_among_processes(tiny_models, sample_dialogues):
    encoder = tiny_models("llama").encoder
    data = preference_data(encoder, sample_dialogues[:4], row_tokens=700, too_long="drop", objective={"name": "kto"})
    numbers = data.steps.plan_epoch(0)[0]
    for world in (1, 3, 50):
        parts = [data.steps.step_batch(numbers, rank, world) for rank in range(world)]
        assert len({(len(part.rows), len(part.mismatched)) for part in parts}) == 1
        assert sum(len(row.reply_of) for part in parts for row in part.mismatched) == len(
            {turn for turn, *_ in data.steps.preferences["train"].comparisons[numbers].tolist()}
        )


@pytest.mark.parametrize("kind", ["lora", "lora from checkpoint", "full"])
def test_live_reference_is_the_starting_point(sample_dialogues, tmp_path, kind):
    from esc_lab.models.load import load_model, save_trained

    settings = model_config("tiny_llama")
    loaded = load_model(settings, CACHE)
    data = preference_data(loaded.encoder, sample_dialogues[:1])
    split = data.steps.preferences["train"]
    if kind == "lora from checkpoint":
        first = add_adapter(loaded, AdapterConfig(dropout=0.5), settings)
        with torch.no_grad():
            for name, parameter in first.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        save_trained(first, settings, tmp_path)
        loaded = load_model(settings, CACHE, checkpoint=tmp_path)
    identity = model_identity(loaded.model)
    compute = partial(score_replies, loaded.model, split, 2048)
    stored = stored_log_probs(split, identity, compute, tmp_path / "cache")
    loaded = add_adapter(loaded, AdapterConfig(kind="full" if kind == "full" else "lora", dropout=0.5), settings)
    live = LiveReference(loaded.model, loaded.adapter)
    loaded.model.train()
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    with live() as reference:
        found = score_replies(reference, split, 2048)
    np.testing.assert_allclose(found, stored, atol=1e-4)
    assert loaded.model.training
    assert trained == {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    moved = score_replies(loaded.model, split, 2048)
    assert np.abs(moved - stored).max() > 0.1


def test_stored_reference_is_reused_and_never_stale(tiny_models, sample_dialogues, tmp_path):
    loaded = tiny_models("llama")
    split = preference_data(loaded.encoder, sample_dialogues[:1]).steps.preferences["train"]
    other = preference_data(loaded.encoder, sample_dialogues[1:2]).steps.preferences["train"]
    identity = model_identity(loaded.model)
    asked = []

    def compute(wanted, row_tokens=2048):
        asked.append(1)
        return score_replies(loaded.model, wanted, row_tokens)

    first = stored_log_probs(split, identity, partial(compute, split), tmp_path)
    again = stored_log_probs(split, identity, partial(compute, split, 1024), tmp_path)
    assert len(asked) == 1
    assert np.array_equal(first, again)
    assert not np.isnan(first).any()
    np.testing.assert_allclose(compute(split, 1024), first, atol=1e-4)
    stored_log_probs(other, identity, partial(compute, other), tmp_path)
    assert len(asked) == 3
    changed = model_identity(perturbed(loaded.model))
    assert changed["weights"] != identity["weights"]
    stored_log_probs(split, changed, partial(compute, split), tmp_path)
    assert len(asked) == 4
    with pytest.raises(UserError, match=r"of 1 of .* replies under the reference model are not finite"):
        stored_log_probs(split, {"weights": "bad"}, lambda: np.where(first == first[3], np.nan, first), tmp_path)
    assert len(stored_log_probs(split, {"weights": "bad"}, partial(compute, split), tmp_path)) == len(first)


def test_balanced_pairs_are_the_most_in_which_each_class_is_as_often_first_as_second():
    rng = np.random.default_rng(5)
    for _ in range(30):
        classes = rng.integers(0, 3, size=(9, 2))
        subsets = (np.flatnonzero([bits >> place & 1 for place in range(9)]) for bits in range(2**9))
        most = max(len(kept) for kept in subsets if sorted(classes[kept, 0]) == sorted(classes[kept, 1]))
        kept = balance_pairs(classes, seed=1)
        assert sorted(classes[kept, 0]) == sorted(classes[kept, 1])
        assert len(kept) == most
        assert kept.tolist() == sorted(set(kept.tolist()))
    assert not len(balance_pairs(np.array([[0, 1], [0, 2], [1, 2]]), seed=1))
    many = np.array([[0, 1]] * 50 + [[1, 0]] * 10)
    assert balance_pairs(many, 1).tolist() == balance_pairs(many, 1).tolist() != balance_pairs(many, 2).tolist()


def test_balanced_pairs_choose_each_strategy_as_often_as_they_reject_it(tiny_models, sample_dialogues):
    encoder, dialogues = tiny_models("llama").encoder, sample_dialogues[:8]

    def count(**settings):
        preferences = preference_data(encoder, dialogues, validation=(), **settings).steps.preferences["train"]
        labels = [
            [preferences.turns[turn].replies[reply].input_ids[preferences.turns[turn].replies[reply].replies[0].start :]
             [: preferences.turns[turn].label_tokens[reply]].tobytes() for reply in pair]
            for turn, *pair in preferences.comparisons.tolist()
        ]  # fmt: skip
        assert len(preferences.tree) == len(labels)
        return [Counter(label for label, _ in labels), Counter(label for _, label in labels)]

    chosen, rejected = count()
    assert chosen != rejected
    for shuffled in (False, True):
        chosen, rejected = count(balance_pairs=True, shuffle_pairs=shuffled)
        assert chosen == rejected
    assert len(chosen) > 2
    for objective in ("kto", "listwise"):
        with pytest.raises(UserError, match=r"data.balance_pairs leaves out pairs, not .* Fix: an objective of pairs"):
            count(balance_pairs=True, objective={"name": objective})


def test_shuffled_pairs_are_the_same_pairs_each_turned_by_a_coin(tiny_models, sample_dialogues):
    encoder, dialogues = tiny_models("llama").encoder, sample_dialogues[:6]

    def pairs(**settings):
        data = preference_data(encoder, dialogues[:4], validation=dialogues[4:], **settings).steps
        return [data.preferences[split].comparisons.tolist() for split in ("train", "val")]

    plain, shuffled = pairs(), pairs(shuffle_pairs=True)
    for straight, turned in zip(plain, shuffled, strict=True):
        back = [[turn, *sorted(pair)] for turn, *pair in straight]
        assert [[turn, *sorted(pair)] for turn, *pair in turned] == back
        kept = sum(a == b for a, b in zip(straight, turned, strict=True))
        assert 0.2 * len(straight) < kept < 0.8 * len(straight)
    assert pairs(shuffle_pairs=True) == shuffled
    assert pairs(shuffle_pairs=True, seed=2) != shuffled
    for objective in ({"name": "kto"}, {"name": "listwise"}, {"value_margin": 0.5}):
        with pytest.raises(UserError, match=r"data.shuffle_pairs turns pairs round, .* Fix: an objective of pairs"):
            pairs(shuffle_pairs=True, objective=objective)
