"""Training of unsupervised super-resolution methods on the ops of `srkernels`.

Runs from a checkout: `python -m models demo` trains DASR in miniature. A method is its networks, its losses and its
step (`models/dasr`); data, metrics, checkpoints, pictures and the training loop are shared by all methods.
"""
