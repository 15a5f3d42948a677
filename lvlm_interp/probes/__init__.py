"""What can be read off activations by linear probes."""
