"""How a prefix enters the attention of a base model."""
