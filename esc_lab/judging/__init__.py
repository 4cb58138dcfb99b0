"""Judges of replies that evaluations wrote: a language model, by a rubric and in pairs, and people (surveys)."""
