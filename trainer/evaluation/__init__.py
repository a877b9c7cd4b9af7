"""What a head is worth on held-out data."""
