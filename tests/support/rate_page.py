"""At which rate does the baseline train? A page whose learning rate is studied, and one cell that trains at none."""

import dataclasses

from crelu_models.spec import Conv, Net, Pool
from sweeps import ALLCONV, Cell, Protocol, RateStudy, main

# Eighty pictures of two textures, and a net whose step takes a millisecond.
PICTURES = "synthetic:size=16,classes=2,train=80,test=40,clutter=10,contrast=60"
NET = Net("shallow", (
    Conv("conv1", 8, 3, 2, 1), Pool("pool1", "max", 2, 2), Conv("conv2", None, 1, 1, act="none"),
    Pool("pool2", "avg", 0),
), 16)  # fmt: skip
RECIPE = dataclasses.replace(
    ALLCONV.shortened("shallow", epochs=2, batch=8, lr=0.02), clip_norm=0.0, warmup_epochs=0.0, precision="fp32",
    restarts=1,
)  # fmt: skip
RATES = (1e12, 0.1, 0.01)
CELLS = (
    Cell("relu", NET, PICTURES, RECIPE),
    Cell("crelu", NET.crelu(1), PICTURES, RECIPE),
    Cell("broken", NET, PICTURES, dataclasses.replace(RECIPE, lr=1e12)),
)

PROTOCOL = Protocol(seeds=3, rates=RateStudy("relu", RATES))

if __name__ == "__main__":
    main("rate_page", __doc__, CELLS, PROTOCOL)
