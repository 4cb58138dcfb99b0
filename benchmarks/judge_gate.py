"""What a judge that needs no words reaches at the gate: how much likelier the talk makes a reply (its PMI).

SmolLM2 scores a reply by its log-probability after the talk less that without the talk, under the same request for the
strategy. The gate is that of stage `judge` and the search: its table is printed, and whether this judge is believed.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from _common import load_smollm2

from esc_lab.config import DataConfig
from esc_lab.config.search import LLMConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.dialogue import Turn, merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.judge_check.check import check_rubric
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import join_reply, score_rows
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.prompts import Prompt
from esc_lab.search.role_prompts import RolePrompts, build_role_prompts
from esc_lab.terminal import print_table
from esc_lab.tokens.packing import pack_rows

ROW_TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="directory with ESConv's train/valid/test files; default: the sample")
    parser.add_argument("--contexts", type=int, default=60, help="of each kind")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    name = "esconv" if options.data else "sample"
    data = DataConfig(name=name, path=str(options.data) if options.data else None)
    dialogues = [merge_turns(dialogue, "set") for dialogue in read_splits(data, "esconv", ReadReport())["test"]]
    _, loaded = load_smollm2(Path(".cache"), options.dtype)
    loaded.model.set_attn_implementation(IMPLEMENTATION)
    prompts = build_role_prompts(load_inventory("esconv"), LLMConfig())

    async def score(talk: Sequence[Turn]) -> float:
        return pointwise_information(loaded, prompts, talk)

    check = asyncio.run(check_rubric(score, dialogues, options.contexts, "empathy: 4", 1))
    print_table("given replies told from foils by their PMI", *check.table())
    foreign = check.kinds["foreign"].value
    print(
        f"judge_gate: {'believed' if check.believed else 'not believed'}, AUC {foreign.text(2)} against foreign replies"
    )


def pointwise_information(loaded: LoadedModel, prompts: RolePrompts, talk: Sequence[Turn]) -> float:
    """Log-probability of the last message after the talk, less that without the talk."""
    *before, last = talk
    asked = prompts.reply_request(last.reply.strategies[0]) if last.reply.strategies else "Answer."
    reply = loaded.encoder.tokenizer(last.reply.text, add_special_tokens=False).input_ids
    sequences = []
    for number, turns in enumerate((before, before[:0])):
        prompt = loaded.encoder.encode_prompt(Prompt(prompts.support_messages(turns, asked)))
        sequences.append(join_reply(prompt.input_ids, reply, number))
    scores = {key: float(values.sum()) for key, values in score_rows(loaded.model, pack_rows([sequences], ROW_TOKENS))}
    return scores[0] - scores[1]


if __name__ == "__main__":
    main()
