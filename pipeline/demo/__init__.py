"""The demo's data: scenes of tinted glyphs, captions, labels, a crawl and held-out scenes, made in seconds.

``generate_demo`` (in :mod:`pipeline.demo.generate`) is the way in; ``make-demo-data`` is its command. What is
drawn is written in ``data_manifests/demo.yaml``.
"""
