"""Benchmarks of every op, from its spec: `pytest bench --benchmark`, `python -m bench report`, `python -m bench gpu`.

An op declares what is timed in its ``spec.py``; nothing here names one, except where hardware ceilings are measured.
"""
