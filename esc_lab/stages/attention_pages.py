"""Token heat maps of an evaluation: what a reply's tokens attend to in its prompt, a page for each of some replies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.metrics.sra import span_columns
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import tree_hidden_states
from esc_lab.prompted_replies import PromptedReply
from esc_lab.report.heat_map import heat_map_page
from esc_lab.tokens import build_tree


def write_heat_maps(cfg: Config, loaded: LoadedModel, measured: Sequence[PromptedReply]) -> list[Path]:
    """A page for each of the first `evaluate.sra.heat_maps` measured replies, in the run directory."""
    pages = []
    for number, reply in enumerate(measured[: cfg.evaluate.sra.heat_maps], 1):
        path = Path(cfg.run_dir) / f"heat_map_{number}.html"
        write_atomic(path, _page(cfg, loaded, reply))
        pages.append(path)
    return pages


@torch.no_grad()
def _page(cfg: Config, loaded: LoadedModel, reply: PromptedReply) -> str:
    prediction, columns = reply.prediction, span_columns(reply.spans)
    ids = np.concatenate([reply.prompt_ids, np.asarray(reply.reply_ids, dtype=np.int64)])
    tree = build_tree([ids])
    probe = AttentionProbe([[*columns.values()]], keep_tokens=True)
    rows = np.arange(len(reply.prompt_ids) - 1, len(ids) - 1)
    probe.watch_tree(tree, np.zeros_like(rows), rows, loaded.model.device)
    tree_hidden_states(loaded.model, tree.input_ids, tree.position_ids, tree.leave, probe=probe)
    found = probe.result().tokens
    assert found is not None
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
        one = reply.sra[measure]
        facts |= {f"SRA ({measure})": f"{one.sra:.2e}", "sham-net log SRA": f"{one.sham_net:+.2f}"}
    return heat_map_page(
        title=f"Where {cfg.model.name} looks while it replies",
        prompt=texts[: len(reply.prompt_ids)],
        reply=texts[len(reply.prompt_ids) :],
        attention=[row.tolist() for row in found],
        spans=spans,
        facts=facts,
    )
