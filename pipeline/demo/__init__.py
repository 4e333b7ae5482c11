"""Demo data: scenes of coloured glyphs with captions and labels, a crawl and held-out scenes,
generated in seconds.

The entry points are :func:`pipeline.demo.generate.generate_demo` and the command
``make-demo-data``. ``data_manifests/demo.yaml`` lists the nouns, colours and fonts.
"""
