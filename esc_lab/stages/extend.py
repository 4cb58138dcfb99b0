"""Stage `extend`: dialogues continued from random places by one turn, with strategies that the prompts name."""

from __future__ import annotations

import logging
from pathlib import Path

import esc_lab.stages.classifier  # noqa: F401  may train the judge, so its code decides what is kept here
from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.config.search import ASKED
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.runs.environment import git_commit
from esc_lab.runs.layout import CONTINUATIONS
from esc_lab.scorers.classifier_files import load_judge
from esc_lab.search.calls import open_calls
from esc_lab.search.clients.replay import take_sampling
from esc_lab.search.continuation_card import NOTES, STRATEGY_NOTES, render_card_of, strategy_rows, summary_rows
from esc_lab.search.extend_result import ExtendResult
from esc_lab.search.extend_session import FILES, ExtendSession
from esc_lab.stages.run_stage import run_substage
from esc_lab.terminal import print_table
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Continue dialogues; a file a split and the data card go into `continuations/`, the journals into `contexts/`.

    Raises:
        UserError: no dialogue can be cut, the classifier has other strategies, an answer cannot be had, or no reply is
            kept.
    """
    prepare(cfg)
    cfg = take_sampling(cfg)
    inventory, report = build_inventory(cfg.inventory), ReadReport()
    splits = read_splits(cfg.data, inventory, report, cfg.config_dirs, needs_labels=False)
    log.info("%s: %s", cfg.data.name, report.line())
    classifier = load_judge(cfg, cfg.extend.classifier, run_substage)
    calls = open_calls(cfg, ASKED["extend"] if cfg.extend.source == "model" else ())
    session = ExtendSession(cfg, splits, calls, classifier)
    result = calls.run(session.extend(), cfg.run_dir)
    directory = Path(cfg.run_dir) / CONTINUATIONS
    _require_replies(result)
    if result.stopped:
        log.warning("%s", result.stopped)
    for split in (split for split in FILES if not result.kept.get(split)):
        log.warning("no reply in a dialogue of %s, so there is no %s: data.path takes all three", split, FILES[split])
    write_atomic(directory / "README.md", render_card_of(cfg, result, git_commit() or ""))
    print_table("What was written", ("", ""), summary_rows(result), notes=NOTES)
    heads = ("strategy", *result.kept)
    print_table("Prompted strategies of the replies", heads, strategy_rows(result), notes=STRATEGY_NOTES)
    log.info("%s (data=jsonl data.path=%s data.loss=last_reply)", directory, directory)
    accuracy = {"extend/classifier_accuracy": classifier.accuracy} if classifier and classifier.accuracy else {}
    return result.metrics() | accuracy


def _require_replies(result: ExtendResult) -> None:
    """Refuse an extension that keeps nothing."""
    if result.strategies:
        return
    if result.stopped:
        raise result.stopped
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(result.counts.items()))
    fix = "another model, a larger llm.supporter.max_tokens or extend.max_copied, or no extend.classifier"
    raise UserError(f"no reply is kept: {counts}", where="stage=extend", fix=fix)
