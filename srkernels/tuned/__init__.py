"""Choices measured on the user's own machine: which backend runs which call, where somebody asked for a measurement.

``records`` keeps what was measured, in memory; ``store`` in files; ``measure`` measures one call; ``report`` runs a
network and says what was found.
"""
