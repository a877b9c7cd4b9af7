"""What only the comparison with the paper needs; nothing that trains or serves imports it."""
