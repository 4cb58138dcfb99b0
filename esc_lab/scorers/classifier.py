"""A strategy classifier of replies: the one fixed judge of strategy adherence, apart from every model under test.

It reads a bare reply (`esc_lab.scorers.adherence`) without the dialogue before it and gives a probability to every
strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esc_lab.data.strategies import Inventory
from esc_lab.scorers.adherence import bare_reply


@dataclass(frozen=True)
class StrategyClassifier:
    """A sequence classification model whose classes are the strategies of an inventory.

    Attributes:
        name: of its base model, or of its directory.
        columns: for every strategy of the inventory, in order, its column in the model's output.
        reply_tokens: what is longer is cut off at the end.
        accuracy: on held-out replies, as it was when the classifier was saved; None if nobody measured it.
    """

    model: Any
    tokenizer: Any
    inventory: Inventory
    name: str
    columns: tuple[int, ...]
    reply_tokens: int
    accuracy: float | None = None

    def encode(self, texts: Sequence[str]) -> tuple[list[tuple[int, ...]], int]:
        """Token ids of each text as it is, and how many of the texts were cut."""
        full: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        long = [number for number, ids in enumerate(full) if len(ids) > self.reply_tokens]
        for number in long:
            # The tokenizer cuts, since it keeps its special tokens at the end.
            full[number] = self.tokenizer(texts[number], truncation=True, max_length=self.reply_tokens)["input_ids"]
        return [tuple(ids) for ids in full], len(long)

    def logits(self, replies: Sequence[Sequence[int]]) -> Tensor:
        """Class scores [N, K] in float32, in the inventory's order, of N replies as token ids, in one padded batch."""
        longest = max(map(len, replies))
        device = next(self.model.parameters()).device
        ids = torch.full((len(replies), longest), self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for row, reply in enumerate(replies):
            ids[row, : len(reply)] = torch.tensor(reply, device=device)
            mask[row, : len(reply)] = 1
        scores: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return scores.float()[:, list(self.columns)]

    @torch.no_grad()
    def predict(self, texts: Sequence[str], *, row_tokens: int = 2048) -> Tensor:
        """Probability of every strategy [N, K], float32 on the CPU, in the inventory's order.

        Replies are bared first. One without a word follows no strategy: its row is all zeros. A forward pass takes
        `row_tokens` padded tokens at most, except for a single reply that is longer.
        """
        self.model.eval()
        bare = [bare_reply(text, self.inventory) for text in texts]
        worded = [number for number, text in enumerate(bare) if text]
        encoded, _ = self.encode([bare[number] for number in worded])
        probabilities = torch.zeros(len(bare), len(self.inventory))
        for batch in batches_by_length([len(ids) for ids in encoded], row_tokens):
            scores = self.logits([encoded[number] for number in batch]).softmax(-1)
            probabilities[[worded[number] for number in batch]] = scores.cpu()
        return probabilities


def choose_strategies(probabilities: Tensor) -> Tensor:
    """The most probable strategy [N] of each row of `StrategyClassifier.predict`; -1 where the row is all zeros.

    >>> choose_strategies(torch.tensor([[0.2, 0.8], [0.0, 0.0]]))
    tensor([ 1, -1])
    """
    return torch.where(probabilities.sum(-1) > 0, probabilities.argmax(-1), -1)


def batches_by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Numbers of the items in batches of similar length, longest first, each within a budget of padded tokens.

    A quarter of a batch is padding at most. An item above the budget is a batch of its own. The order
    depends on the lengths and on nothing else.

    >>> batches_by_length([3, 10, 4, 9], 40)
    [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        # A reply of a few words beside a long one would be padding for the most part.
        if batch and (len(batch) + 1) * longest <= tokens and lengths[number] >= 0.75 * longest:
            batch.append(number)
        else:
            batches.append([number])
    return batches
