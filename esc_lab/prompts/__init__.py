"""Prompt layouts and their spans."""
