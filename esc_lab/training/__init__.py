"""SFT and preference optimisation."""
