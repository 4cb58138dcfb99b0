"""Strategy search: Monte Carlo tree search over support strategies that turns seed dialogues into preference data."""
