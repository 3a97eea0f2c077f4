"""What every method offers: variant, layer and pack, and how they are attached to a model."""
