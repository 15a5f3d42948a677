"""Opening a model, and checking that it is read truly."""
