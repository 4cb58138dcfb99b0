"""Judges: a language model of replies, by a rubric and in pairs, and of whole talks by a rubric; people (surveys)."""
