"""Leave one subject out."""
