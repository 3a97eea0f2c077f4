"""Named streams of randomness: every random number is a function of a seed and of what it is for."""

import hashlib

import torch


def stream_key(seed: int, *names: str | int) -> int:
    """A 63-bit key that depends on the seed and on every name, the same on every machine."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one use: `stream(seed, "init", layer)`, `stream(seed, "data")`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_key(seed, *names))
    return generator
