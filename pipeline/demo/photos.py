"""Photographs of scikit-image and scikit-learn as a crawled shard."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pipeline.demo.formats import CrawlSample, write_crawl_shard
from pipeline.demo.manifest import DemoManifest, load_manifest, package_file
from pipeline.demo.scenes import encode_jpeg


def write_photo_shard(
    out: Path, *, manifest: DemoManifest | None = None, max_side: int = 384, quality: int = 90
) -> int:
    """Write the crawled shard ``photos/00000`` below ``out``; returns its number of photographs.

    Photographs with a side longer than ``max_side`` pixels are resized; greyscale ones stay
    greyscale; transparency becomes white.

    Raises:
        InputError: a package is not installed, or lacks one of the photographs.
    """
    manifest = manifest or load_manifest()
    samples = []
    for photo in manifest.photos:
        with Image.open(package_file(photo.package, photo.file)) as opened:
            image = _opaque(opened)
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        samples.append(
            CrawlSample(
                jpeg=encode_jpeg(image, quality),
                caption=photo.caption,
                url=f"package:{photo.package}/{photo.file}",
                width=image.width,
                height=image.height,
            )
        )
    folder = out / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    write_crawl_shard(folder, 0, samples)
    return len(samples)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "P"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1", "I;16") else "RGB")
