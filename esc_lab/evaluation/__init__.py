"""Evaluations and their predictions."""
