"""Results for the eye: the terminal's table, charts, the page and its other formats."""
