"""One process that labels: reading, decoding, the teacher and writing, each beside the others."""
