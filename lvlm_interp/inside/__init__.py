"""What the inside of a model says: lenses, and logits taken apart."""
