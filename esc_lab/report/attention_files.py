"""What an evaluation leaves of attention: sra.json, each reply's heads, a map of all heads, token heat maps."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.strategies import build_inventory
from esc_lab.evaluation.prompted_replies import PromptedReply
from esc_lab.evaluation.reply_attention import span_columns
from esc_lab.metrics import StrategyRelevantAttention
from esc_lab.models.attention_boost import AttentionBoost, mark, split_tree
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.forward import tree_hidden_states
from esc_lab.models.load import LoadedModel
from esc_lab.report.figures import draw_figure, head_map
from esc_lab.report.page import render_page
from esc_lab.runs.layout import ATTENTION
from esc_lab.terminal import print_table
from esc_lab.tokens import build_tree

log = logging.getLogger(__name__)

HEADS = "sra_heads.safetensors"
# Columns of the table of strategies that replies name themselves.
STRATEGY_NOTES = (
    "n: replies whose attention was measured.",
    "log SRA: logarithm of the attention that a word of the reply pays to a word of its strategy's name.",
    "net: that less the same of the other strategies' names; above 0: it looks at its own strategy more.",
)


def write_attention(
    cfg: Config, loaded: LoadedModel, measured: Sequence[PromptedReply], boost: AttentionBoost | None
) -> None:
    """SRA in groups and by head, each reply's heads, which analyses read, and pictures, of measured replies.

    Args:
        boost: which they were written with.
    """
    directory, settings = Path(cfg.run_dir), cfg.evaluate.sra
    replies = [reply.sra for reply in measured if reply.sra]
    heads = np.stack([reply[f"{settings.definition}/{settings.span}"].heads for reply in replies])
    metric = StrategyRelevantAttention(
        build_inventory(cfg.inventory).names,
        definition=settings.definition,
        span=settings.span,
        heads=heads.shape[1:],
    )
    predictions = [reply.prediction for reply in measured]
    metric.update(replies, [str(p.followed) for p in predictions], [p.turn for p in predictions])
    means = _floats(metric.compute())
    log.info(
        "attention on the strategy (%s): log SRA %.3f, sham-net %+.3f, %.0f replies",
        metric.measure, means["log_sra"], means["sham_net"], means["n"],
    )  # fmt: skip
    groups: dict[str, Any] = {
        "strategy": {label: _floats(of_group) for label, of_group in metric.by("strategy").items()},
        "depth": {str(label): _floats(of_group) for label, of_group in metric.by("depth").items()},
    }
    if any(prediction.prompted is None for prediction in predictions):
        _print_strategies(groups["strategy"])
    content = {"measure": metric.measure, "all": means, "by": groups, "heads": metric.heads.tolist()}
    write_atomic(directory / ATTENTION, json.dumps(content, indent=1))
    save_file({"heads": heads}, directory / HEADS)
    title = f"{cfg.model.name}: attention on the strategy"
    with np.errstate(divide="ignore"):  # a head whose attention is blocked has none
        values = np.log(metric.heads.numpy())
    draw_figure(directory / "sra_heads", head_map, values, title=title, colour_label="log SRA")
    for number, reply in enumerate(measured[: settings.heat_maps], 1):
        write_atomic(directory / f"heat_map_{number}.html", _page(cfg, loaded, reply, boost))


def _print_strategies(by_strategy: Mapping[str, Mapping[str, float]]) -> None:
    """Where models choose: their choices move the mean over replies, so net attention is shown within strategies."""
    nets = [means["sham_net"] for means in by_strategy.values()]
    print_table(
        "Attention on the strategy that a reply names, against the others of the list",
        ["strategy", "n", "log SRA", "net"],
        [
            [label, f"{means['n']:.0f}", f"{means['log_sra']:.2f}", f"{means['sham_net']:+.2f}"]
            for label, means in by_strategy.items()
        ],
        notes=[f"Mean net within strategies {np.mean(nets):+.3f}, of {len(nets)} strategies."],
        meanings=STRATEGY_NOTES,
    )


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


@torch.no_grad()
def _page(cfg: Config, loaded: LoadedModel, reply: PromptedReply, boost: AttentionBoost | None) -> str:
    prediction, columns = reply.prediction, span_columns(reply.spans)
    ids = np.concatenate([reply.prompt_ids, np.asarray(reply.reply_ids, dtype=np.int64)])
    tree, steer = split_tree(build_tree(mark([ids], [reply.boosted])), boost)
    probe = AttentionProbe([[*columns.values()]], keep_tokens=True)
    rows = np.arange(len(reply.prompt_ids) - 1, len(ids) - 1)
    probe.watch_tree(tree, np.zeros_like(rows), rows, loaded.model.device)
    tree_hidden_states(loaded.model, tree.input_ids, tree.position_ids, tree.leave, probe=probe, boost=steer)
    attention = probe.result().tokens
    assert attention is not None
    assert reply.sra is not None
    strategy = str(prediction.followed)
    spans = [
        (int(span[0]), int(span[-1]) + 1, "control" if name is None else name)
        for (kind, name), span in columns.items()
        if kind == "name" and len(span)
    ]
    texts = [loaded.encoder.tokenizer.decode([token]) for token in ids.tolist()]
    measure = f"{cfg.evaluate.sra.definition}/{cfg.evaluate.sra.span}"
    facts = {
        "model": cfg.model.name,
        "template": prediction.template,
        "strategy": strategy,
        "judged": prediction.judged or "not judged",
        "dialogue": f"{prediction.dialogue}, turn {prediction.turn + 1}",
    }
    if measure in reply.sra:
        span = reply.sra[measure]
        sham_net = math.log(span.sra) - math.log(span.control)
        facts |= {f"SRA ({measure})": f"{span.sra:.2e}", "sham-net log SRA": f"{sham_net:+.2f}"}
    return heat_map_page(
        title=f"Where {cfg.model.name} looks while it replies",
        prompt=texts[: len(reply.prompt_ids)],
        reply=texts[len(reply.prompt_ids) :],
        attention=[row.tolist() for row in attention],
        spans=spans,
        facts=facts,
    )


def heat_map_page(
    title: str,
    prompt: Sequence[str],
    reply: Sequence[str],
    attention: Sequence[Sequence[float]],
    *,
    spans: Sequence[tuple[int, int, str]] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """A self-contained HTML page: prompt tokens coloured by the attention that the reply's tokens give them.

    At first the mean over the reply tokens is shown; choosing a reply token shows its own row. The first prompt token
    takes the null attention, which usually dwarfs the rest; it is marked and kept out of the colour scale.

    Args:
        title: heading of the page.
        prompt: texts of the prompt's tokens [P]; any characters.
        reply: texts of the reply's tokens [R].
        attention: for reply token r what the query that predicts it gives to each token it sees, mean over layers and
            heads, between 0 and 1: P + r values, on the prompt and on the reply tokens before it. Kept to 1e-6.
        spans: strategy-relevant ranges of prompt tokens as (start, end, label); they may overlap.
        facts: shown at the top: strategy, template, SRA and the like.

    Raises:
        ValueError: no prompt, no reply, lengths or spans that do not fit, or attention outside 0 to 1.
    """
    length = len(prompt)
    if not prompt or not reply or [len(row) for row in attention] != [length + r for r in range(len(reply))]:
        raise ValueError(f"attention has to be {len(reply)} rows of {length} values and more, one more in each row")
    if not all(0 <= value <= 1 + 1e-3 for row in attention for value in row):  # half precision rounds sums up
        raise ValueError("attention has to be between 0 and 1")
    if not all(0 <= start < end <= length for start, end, _ in spans):
        raise ValueError(f"a span is empty or not within the prompt's {length} tokens: {list(spans)}")
    mean = [math.fsum(column) / len(reply) for column in zip(*(row[:length] for row in attention), strict=True)]
    data = {
        "prompt": list(prompt),
        "reply": list(reply),
        "rows": [[round(value * 1e6) for value in row] for row in (mean, *attention)],
        "spans": [list(span) for span in spans],
        "boxes": _boxes(length, spans),
    }
    return render_page(
        "heat_map.html.jinja", title, data, styles=["heat_map.css"], scripts=["page.js", "heat_map.js"], facts=facts
    )


def _boxes(length: int, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Runs of tokens that lie in the same spans, as (start, end, labels): boxes that do not overlap."""
    boxes = []
    inside = [tuple(n for n, (start, end, _) in enumerate(spans) if start <= token < end) for token in range(length)]
    for members, run in groupby(range(length), key=inside.__getitem__):
        tokens = list(run)
        if members:
            boxes.append((tokens[0], tokens[-1] + 1, ", ".join(dict.fromkeys(spans[n][2] for n in members))))
    return boxes
