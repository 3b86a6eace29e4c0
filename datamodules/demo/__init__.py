"""The renderer and the rendered corpora."""
