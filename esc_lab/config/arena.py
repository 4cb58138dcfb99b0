"""Settings of stage `arena`: which supporters talk with the same seekers, and which trainings made them."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.config.item import FROM_ZERO, item

SUPPORTERS = ("base", "sft", "cso", "steerable", "prompted")


@dataclass
class ArenaConfig:
    supporters: list[str] = item(
        ["base", "sft", "cso", "steerable"],
        "who talks: the model as it came, after SFT, after CSO; the steerable one, trained on prompts that name the "
        "strategy, under arena.template; prompted: the model as it came under these prompts, its control",
        choices=SUPPORTERS,
    )
    sft: str | None = item(None, "run directory of the SFT model; null = trained here, as a pipeline does", path=True)
    cso: str | None = item(
        None, "run directory of the CSO model; null = trained here, on what a search found (pipeline.stages)", path=True
    )
    steerable: str | None = item(None, "run directory of the steerable model; null = trained here", path=True)
    temperature: float = item(
        0.7,
        "sampling temperature of all supporters in the talks; that of llm.supporter is the search's. Models of the "
        "demo write empty replies at low ones",
        within=FROM_ZERO,
    )
    template: str = item("standard", "prompt layout of steerable and prompted; it names the strategy")
    strategies: list[str] = item(
        ["Question", "Reflection of feelings", "Affirmation and Reassurance", "Providing Suggestions"],
        "strategies of the turns of steerable and prompted, in order and then again from the first",
    )
