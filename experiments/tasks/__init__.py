"""The tasks: what is learned, from which data, and how it is scored."""
