"""Finding, aligning and steadying faces."""
