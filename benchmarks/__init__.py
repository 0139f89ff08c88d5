"""How fast this project is beside the notebook that it comes from, and how it grows with data."""
