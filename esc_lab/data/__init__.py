"""Dialogues, strategies and corpora."""
