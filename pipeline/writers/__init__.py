"""Our records in the formats of others: a small file a format, each written as its own readers want it."""
