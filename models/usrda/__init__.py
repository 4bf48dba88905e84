"""USR-DA: unsupervised real-world super-resolution as domain adaptation."""
