"""Which words of a caption are asked for: captions worth parsing, noun chunks worth boxing."""
