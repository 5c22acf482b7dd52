"""Programs to start from. Each runs by itself, `python examples/NAME.py`, and ends within seconds on a laptop."""
