"""Runs side by side: tables with intervals and tests, figures, results by group of dialogues."""
