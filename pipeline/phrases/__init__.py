"""Extraction of the phrases of captions that the teacher should localise."""
