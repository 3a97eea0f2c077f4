"""Adapt a model of your own and train it in a plain PyTorch loop: `python examples/own_model.py --variant lora`."""

import argparse
from collections import OrderedDict

import torch
from torch import nn

from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--variant", choices=VARIANTS, default="adalora")
name = parser.parse_args().variant

torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
model = nn.Sequential(OrderedDict(encoder=nn.TransformerEncoder(layer, 2), head=nn.Linear(64, 64)))
before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

Method = VARIANTS[name].load()
knobs = {"rank": 4} if "rank" in Method.config_class.model_fields else {}
variant = attach(
    Method,
    model,
    targets=["*.query", "*.value", "*.linear1"],
    head_modules=["head"],  # trained whole, whatever the variant
    pack=Pack(seeds=(0,), total_steps=(100,)),
    configs=[Method.config_class(**knobs)],
)
optimizer = torch.optim.AdamW(variant.torch_groups(learning_rate=2e-3, weight_decay=0.01))
losses = []
for _ in range(100):
    x = torch.randn(8, 16, 64)
    loss = (model(x) - x.roll(1, dims=-1)).square().mean()
    (loss + variant.penalty().sum()).backward()
    with variant.optimizer_step():  # what the method does before and after a step
        optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, ranks {variant.ranks_alive()}")
assert losses[-1] < losses[0]
with torch.no_grad():
    adapted = model.eval()(x)
plain = variant.merge()  # `model` itself, now a plain one with W0 + ΔW; variant.unmerge() goes back
torch.testing.assert_close(plain(x), adapted, rtol=1e-4, atol=1e-4)
base = variant.detach()  # the model as it was, bit for bit
assert all(torch.equal(before[key], tensor) for key, tensor in base.state_dict().items())
