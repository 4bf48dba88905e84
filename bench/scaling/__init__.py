"""How the time of every op and every training step grows with the side of the pictures and with the batch."""
