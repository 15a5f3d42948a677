"""The answer while it is written: with the image and without it, in lockstep on the same tokens."""
