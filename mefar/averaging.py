"""Old name of mefar.tokenizer.weight_ema, for configurations on disk; goes with version 0.3."""

from mefar.tokenizer.weight_ema import WeightEMA as WeightEMA
