"""Statistics as functions of arrays: they import nothing of ours, so every package may call them."""
