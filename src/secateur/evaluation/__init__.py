"""What a model has lost."""
