"""What leaves for other tools: dialogues as their training files, how a model directory is served, and the hub."""
