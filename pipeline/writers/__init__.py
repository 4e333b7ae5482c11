"""Export of records to other formats, one module per format."""
