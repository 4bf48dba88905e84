"""`python -m models domain-gap`: how far generated LR pictures are from real ones."""
