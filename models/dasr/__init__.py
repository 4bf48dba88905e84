"""DASR: domain-distance aware training for unsupervised real-world super-resolution."""
