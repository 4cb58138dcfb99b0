"""One web page that shows where in its prompt a reply looks: attention of each reply token, no network, no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import fsum

from esc_lab.report.page import render_page


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
    mean = [fsum(column) / len(reply) for column in zip(*(row[:length] for row in attention), strict=True)]
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
