"""Text as data: files and Hub data sets, rows and splits, tokens and batches, and presets."""
