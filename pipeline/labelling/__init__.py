"""Labels of a crawl: regions of its phrases, their second scores, and training records of both."""
