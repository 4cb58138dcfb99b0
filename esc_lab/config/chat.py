"""Settings of stage `chat`: a person talks, as the seeker, with a model, or with two side by side."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.config.item import COUNT, FROM_ZERO, LOOKS, PLACE, SPEED, item


@dataclass
class ChatConfig:
    where: str = item(
        "terminal",
        "where one talks: in the terminal, or in the browser",
        choices=("terminal", "browser"),
        affects=LOOKS,
    )
    against: str | None = item(
        None,
        "a second model whose replies stand beside the first one's, blind: a run directory (or adapter/model "
        "directory), or base = the model without a checkpoint",
    )
    templates: list[str] = item(
        ["cso", "standard", "c1_hf", "c3_hf"], "prompt layouts that one can switch to, beside that of prompt"
    )
    temperature: float = item(0.7, "sampling temperature; 0 = greedy", within=FROM_ZERO)
    top_p: float = item(0.9, "nucleus sampling mass", within=(1e-6, 1))
    max_new_tokens: int = item(96, "longest reply in tokens", within=COUNT)
    cache_tokens: int = item(
        8192,
        "tokens whose keys and values are kept between turns (memory as in docs/search.md); prompts that would be "
        "longer leave out the first half of the talk",
        within=(64, float("inf")),
        affects=SPEED,
    )
    host: str = item("127.0.0.1", "where=browser: address that the page is served at; another than this computer's own "
                     "lets others in the network read and write along", affects=PLACE)  # fmt: skip
    port: int = item(8765, "where=browser: its port", within=(1, 65535), affects=PLACE)
