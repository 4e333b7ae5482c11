"""Near-duplicates: a hash of how an image looks, an index of hashes, and lists of what is alike."""
