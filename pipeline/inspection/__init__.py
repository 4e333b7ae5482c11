"""Statistics of shards and label stores, computed in one pass, as terminal lines, JSON or a page."""
