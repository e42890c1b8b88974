"""A feature set to scores: data, model, training, evaluation, export, serving.

In the order in which imports may run: `data`, `kernels`, `history`, `towers`, `model`, `evaluation`, `training`,
`serving`, `export`, `diagnosis`, `reporting`. `serving` imports nothing of `ctr` but itself, and no torch.
"""
