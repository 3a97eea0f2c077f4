"""What one training step costs, ours beside the other libraries and beside the frozen model."""
