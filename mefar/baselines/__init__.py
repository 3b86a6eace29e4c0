"""What tokens are compared with, under the same folds."""
