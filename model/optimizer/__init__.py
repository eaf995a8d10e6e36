"""LARS and AdamW, their learning rates, and the layout of parameters in a flat tensor that ZeRO cuts up.

`build` chooses by the recipe, `lars` and `adamw` take steps, `schedule` gives rates, `segments` holds the layout.
"""

from model.optimizer.build import build_optimizer, set_step

__all__ = ["build_optimizer", "set_step"]
