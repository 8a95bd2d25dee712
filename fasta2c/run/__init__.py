"""What a run leaves on disk and shows on the terminal: its folder, checkpoints, metrics, progress, signals."""
