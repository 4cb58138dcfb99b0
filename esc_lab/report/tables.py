"""What tables show: the columns of a comparison, and strategy by strategy on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from esc_lab.terminal import console

# Columns of the comparison: metric, heading, decimals, and whether more is better (None = neither).
COLUMNS: tuple[tuple[str, str, int, bool | None], ...] = (
    ("strategy/Q", "Q", 3, True),
    ("strategy/Q_W", "Q_W", 3, True),
    ("strategy/B", "B", 3, False),
    ("strategy/accuracy", "acc", 3, True),
    ("strategy/classes_predicted", "classes", 0, None),
    ("strategy/n", "n", 0, None),
    ("generated/Q", "Q gen", 3, True),
    ("generated/unparsable", "unpars.", 3, False),
    ("generated/agreement", "agree", 3, None),
    ("text/rouge_l", "ROUGE-L", 3, True),
    ("text/bleu_2", "BLEU-2", 3, True),
    ("text/distinct_2", "dist-2", 3, None),
    ("text/perplexity", "ppl", 2, False),
    ("sra/log_sra", "log SRA", 2, None),
    ("sra/sham_net", "net SRA", 2, None),
    ("adherence/accuracy", "adher.", 3, True),
    ("judge/overall", "judge", 2, True),
    ("preference/accuracy", "pref.", 3, True),
    ("preference/reward_accuracy", "reward", 3, True),
    ("val/loss", "val loss", 4, False),
)


# How replies were drawn, in metrics.json under generation/.
SAMPLING = ("temperature", "top_p", "max_new_tokens", "samples")


def print_strategies(
    title: str, rows: Sequence[Mapping[str, float | str]], metrics: Mapping[str, float], group: str
) -> None:
    """Per-strategy precision, recall, F1 and preference, with n, classes predicted and the guard in the caption."""
    guard = "guard acted" if metrics[f"{group}/B_guard"] else "no guard"
    caption = (
        f"Q {metrics[f'{group}/Q']:.3f}  Q_W {metrics[f'{group}/Q_W']:.3f}  B {metrics[f'{group}/B']:.3f} ({guard})  "
        f"n {metrics[f'{group}/n']:.0f}  classes predicted {metrics[f'{group}/classes_predicted']:.0f}  "
        f"unparsable {metrics[f'{group}/unparsable']:.1%}"
    )
    if group == "generated":
        caption += "\n" + "  ".join(f"{name} {metrics[f'generation/{name}']:g}" for name in SAMPLING)
    table = Table(title=escape(title), caption=caption)
    table.add_column("strategy")
    for heading in ("precision", "recall", "F1", "gold", "predicted", "preference"):
        table.add_column(heading, justify="right")
    for row in rows:
        scores = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        counts = [f"{row[key]:.0f}" for key in ("support", "predicted")]
        table.add_row(str(row["strategy"]), *scores, *counts, f"{row['preference']:.2f}")
    console().print(table)
