"""One's own video: where a face moves, what it does there, and how well that is found."""
