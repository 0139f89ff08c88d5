"""One HTML file for each look at data or results."""
