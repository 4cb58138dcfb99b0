"""Studies of Strategy-Relevant Attention."""
