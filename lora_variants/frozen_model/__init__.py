"""What the frozen model offers: its linear maps, its attention, and the names of its layers."""
