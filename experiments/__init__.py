"""What runs: configuration, base models, tasks, the training loop, and what a run leaves on disk."""
