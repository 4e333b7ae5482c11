"""HTML pages and Markdown reports of a run, rendered from its JSON files."""
