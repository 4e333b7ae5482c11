"""What is in shards and label stores: counted in one pass, told in lines, JSON and a page."""
