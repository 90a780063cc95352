"""Documents rendered as HTML, Markdown, LaTeX, CSV and SVG."""
