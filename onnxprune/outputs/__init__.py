"""What a model gives: metrics of it and losses on it."""
