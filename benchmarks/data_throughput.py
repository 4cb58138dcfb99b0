"""Dialogues per second from file to packed rows under the `cso` template, peak memory, and one very long dialogue.

With `--data DIR` it reads ESConv's published split; without, the sample corpus is repeated to 1,300 dialogues (each
with a word of its own, so that no two are equal).
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from _common import smollm2

from esc_lab.config import DataConfig, TemplateConfig
from esc_lab.data.corpora import ReadReport, read_splits, sample_path
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.models.load import load_encoder
from esc_lab.tokens import ChatEncoder, pack_rows
from esc_lab.training.sft import SFTSteps
from esc_lab.training.steps import TurnEncoder

ROW_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="directory with ESConv's train/valid/test files")
    options = parser.parse_args()
    encoder = load_encoder(smollm2(), Path(".cache"))
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            data = DataConfig(name="esconv", path=str(options.data), format="esconv")
        else:
            data = DataConfig(name="sample", path=str(repeated_sample(Path(folder) / "sample.jsonl")), format="jsonl")
        started = time.perf_counter()
        splits = read_splits(data, "esconv", ReadReport())
        steps = SFTSteps(splits, TurnEncoder(encoder, load_inventory("esconv"), TemplateConfig(), ROW_TOKENS), data, 1)
        dialogues = rows = tokens = 0
        for split, found in splits.items():
            sequences = steps.encode_split(split)
            packed = pack_rows([sequences_of for _, sequences_of in sequences], ROW_TOKENS)
            dialogues, rows, tokens = dialogues + len(found), rows + len(packed), tokens + sum(map(len, packed))
        seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{dialogues} dialogues, {rows} rows, {tokens} tokens, {seconds:.1f} s")
    print(f"data_long_dialogue: {long_dialogue_seconds(encoder):.1f} s of CPU for 1,000 turns (goal < 5 s)")
    print(f"data_peak_memory: {memory:.2f} GB (goal < 1.5 GB)")
    print(f"data_dialogues_per_s: {dialogues / seconds:.0f} (goal >= 100)")


def long_dialogue_seconds(encoder: ChatEncoder, turns: int = 1000) -> float:
    """CPU seconds to encode one dialogue of many turns, of 20 words each."""
    words = Reply(" ".join(["word"] * 20), ("Question",))
    sides = (Turn("seeker", Reply(words.text)), Turn("supporter", words))
    dialogue = Dialogue(tuple(sides[number % 2] for number in range(turns)), "esconv")
    encode = TurnEncoder(encoder, load_inventory("esconv"), TemplateConfig(), ROW_TOKENS)
    started = time.process_time()
    encode.encode("long", [encode.examples(dialogue)])
    return time.process_time() - started


def repeated_sample(path: Path, count: int = 1300) -> Path:
    """The sample corpus, again and again, every copy told apart by its first message."""
    records = [json.loads(line) for line in sample_path().read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record = json.loads(json.dumps(records[number % len(records)]))
            record["tree_id"] = f"{record['tree_id']}-{number}"
            record["turns"][0]["text"] += f" ({number})"
            file.write(json.dumps(record) + "\n")
    return path


if __name__ == "__main__":
    main()
