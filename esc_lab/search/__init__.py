"""Strategy search: Monte Carlo tree search over support strategies that turns seed dialogues into preference data."""

# Folder of a run directory with what was found.
ESC_PRO = "esc_pro"
