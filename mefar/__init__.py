"""mefar: micro-expression facial action representations.

Shape legend of the whole package: B batch, L tokens, K codes, D width, P patches,
H W pixels, C classes, F folds, S seeds, V views, G models trained together.
"""

__version__ = "0.1.0"
