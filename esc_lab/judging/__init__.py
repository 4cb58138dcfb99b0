"""Judges of replies that evaluations wrote: scores on a rubric, and comparisons in pairs against a baseline."""
