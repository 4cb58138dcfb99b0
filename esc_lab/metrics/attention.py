"""Strategy-Relevant Attention (SRA, arXiv 2402.10453) of replies, with two controls, as a metric.

SRA is the mean attention that the queries which predict a reply's tokens give to the tokens of a strategy span in the
prompt. Where a span stands in the prompt moves SRA whatever the span says, so two controls stand beside it: the same
measure of a neutral span of equal length in the same instruction (`control`), and SRA times the number of keys that a
query sees (`relative`: 1 = attention spread evenly). What a neutral phrase says moves the control too, so prompts take
turns with several, and the level of the net is said with its spread over them.

Under a template that lists all strategies the span is that of the strategy which the reply names, and the controls are
the spans of the others. Which strategies a model names then moves the mean, so it is taken within strategies as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esc_lab.metrics.metric import Definition, Metric, count_metric, mean_of, number_of
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable

DEFINITIONS = ("paper", "reference", "first_token")
KINDS = ("name", "quoted", "quoted_strategy", "instruction")


@dataclass(frozen=True)
class SpanSRA:
    """SRA of one reply on one kind of span by one definition.

    Attributes:
        sra: mean attention per token of the span, over layers, heads and response tokens (`first_token`: the first).
        control: the same of the control spans (geometric mean over them).
        relative: like `sra`, with the attention of each query times the number of keys that it could attend to (not
            counting the first token where the definition leaves it out).
        heads: [layers, heads] float32; its mean is `sra`.
    """

    sra: float
    control: float
    relative: float
    heads: npt.NDArray[np.float32]


# By "<definition>/<kind>".
ReplySRA = Mapping[str, SpanSRA]


def span_measures(sra: FloatArray, control: FloatArray, relative: FloatArray) -> dict[str, FloatArray]:
    """What is said of the attention of replies, from arrays of `SpanSRA`'s values.

    Returns:
        `sra`; `log_sra`, its natural logarithm, the published values; `sham_net`, `log_sra` minus that of the control:
        what the strategy adds; `log_relative`, 0 = attention spread evenly.
    """
    log_sra = np.log(sra)
    return {"sra": sra, "log_sra": log_sra, "sham_net": log_sra - np.log(control), "log_relative": np.log(relative)}


def phrase_spread(table: PredictionTable) -> float:
    """Standard deviation over neutral phrases of the mean net of the replies that met each; nan below two phrases."""
    net, phrase = table.column("sham_net"), table.column("phrase")
    known = ~np.isnan(net + phrase)
    means = [net[known & (phrase == number)].mean() for number in np.unique(phrase[known])]
    return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


def _sum_by_strategy(table: PredictionTable, keep: BoolArray) -> FloatArray:
    """Sums and numbers [2 * strategies, clusters] of the nets of replies that follow each strategy."""
    net, followed = table.column("sham_net"), table.column("followed")
    members = [keep & (followed == number) & ~np.isnan(net) for number in range(len(table.test.strategies))]
    return np.concatenate([table.sum_by_cluster(rows, net[rows], np.ones(rows.sum())) for rows in members])


def _mean_of_strategies(totals: FloatArray) -> FloatArray:
    """Mean over the strategies that occur of their replies' means [...], of totals [2 * strategies, ...]."""
    sums, numbers = totals[::2], totals[1::2]
    with np.errstate(invalid="ignore"):
        return np.asarray((sums / np.maximum(numbers, 1)).sum(0) / (numbers > 0).sum(0))


def _metric(name: str, heading: str, meaning: str, *, shown: bool, by_tokens: bool = False) -> Metric:
    return Metric(
        f"sra/{name}", heading, None, mean_of(name), count="sra/n", decimals=2 if shown else 3, shown=shown,
        grouped=shown, by_tokens=by_tokens, meaning=meaning,
    )  # fmt: skip


_BY_DEFINITION = {
    "paper": "log SRA by the paper's formula, whichever evaluate.sra.definition is shown.",
    "reference": "log SRA as the published code computes it: without attention on the first token, renormalised.",
    "first_token": "log SRA of the first token of a reply alone, which the published table holds.",
}
METRICS = (
    _metric(
        "log_sra",
        "log SRA",
        "Strategy-Relevant Attention: mean logarithm of the attention that a reply's tokens give to the tokens of its "
        "strategy in the prompt. Higher (nearer to 0) = more attention.",
        shown=True,
        by_tokens=True,
    ),
    _metric(
        "sham_net",
        "sham-net",
        "Strategy-Relevant Attention beyond a control: log attention to the strategy's tokens minus that to as many "
        "tokens without a strategy. Its level depends on the words of the control: compare it under equal ones only.",
        shown=True,
    ),
    Metric(
        "sra/sham_net_spread",
        "± phrases",
        count="sra/n",
        decimals=2,
        shown=True,
        meaning="Standard deviation of sham-net over the neutral phrases that prompts take turns with: how much the "
        "level of sham-net owes to the words of its control.",
    ),
    Metric(
        "sra/sham_net_within",
        "net in strategies",
        None,
        Definition(_sum_by_strategy, _mean_of_strategies),
        count="sra/n",
        decimals=2,
        shown=True,
        grouped=True,
        meaning="Mean over strategies of sham-net among the replies that follow each: which strategies a model chooses "
        "does not move it, as long as it chooses them all.",
    ),
    _metric(
        "sra",
        "SRA",
        "Mean attention per token that replies give to the tokens of their strategy in the prompt.",
        shown=False,
        by_tokens=True,
    ),
    _metric(
        "log_relative",
        "log relative",
        "Mean logarithm of the attention on the strategy's tokens times the number of tokens that a reply could attend "
        "to; 0 = attention spread evenly.",
        shown=False,
    ),
    *(
        _metric(f"log_sra_{each}", f"log SRA ({each.replace('_', ' ')})", meaning, shown=False, by_tokens=True)
        for each, meaning in _BY_DEFINITION.items()
    ),
    count_metric("sra/n", "n SRA", number_of("sra")),
)
