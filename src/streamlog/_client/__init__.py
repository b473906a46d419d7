"""What producers are made of: batches, lanes, the sender, bulk writers."""
