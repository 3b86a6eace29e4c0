"""What a tokenizer's tokens know."""
