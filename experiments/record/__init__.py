"""What a run leaves on disk, and its copy in W&B."""
