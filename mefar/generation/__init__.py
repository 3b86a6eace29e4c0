"""Tokens that move faces: transfer to other faces, and what each token does."""
