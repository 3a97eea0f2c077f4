"""The base models: small ones that are built in, and transformers that were pretrained elsewhere."""
