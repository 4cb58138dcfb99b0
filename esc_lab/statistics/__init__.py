"""Intervals, bootstrap over dialogues and seeds, permutation tests, correlations, win rates at equal length."""
