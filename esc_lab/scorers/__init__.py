"""What is trained to judge replies."""
