"""Near-duplicate search: perceptual hashes, an index of hashes, and lists of matches."""
