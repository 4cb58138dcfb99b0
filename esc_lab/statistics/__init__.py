"""Intervals and tests over seeds and dialogues, bootstrap over dialogues, correlations, win rates at equal length."""
