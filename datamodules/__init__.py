"""Everything between files on disk and a batch. Knows no model."""
