"""Generator of demo data: scenes of coloured glyphs with captions, labels and a crawl.

Entry point: :func:`pipeline.demo.generate.generate_demo`. ``data_manifests/demo.yaml`` lists the
nouns, colours and fonts.
"""
