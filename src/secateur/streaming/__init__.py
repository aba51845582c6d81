"""Where weights come from, the walk over layers, and the hidden states between them."""
