"""What workers do: packs of claimed trials, and the processes that train them."""
