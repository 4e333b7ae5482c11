"""Throughput of a run, its cost, time by part of the work, and an estimate of the rest.

Not part of shard reports, whose bytes do not depend on time or host.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

LIMIT = "limit"
"""Part whose seconds are those that the devices need at their peak for the FLOPs that were computed."""
WAITS = 0.1
"""Share of waiting of the model's thread from which something else than the device determines the rate."""


class Rates(BaseModel):
    """Times of one run, or the sum of several.

    device_seconds: wall time summed over the worker processes. parts: seconds by part of the work;
    they overlap, as reading, decoding and writing run beside the model. bytes_done, bytes_left: of
    input shards.
    """

    model_config = ConfigDict(extra="forbid")

    unit: str = "images"
    devices: int = 1
    device_seconds: float = 0.0
    samples: int = 0
    parts: dict[str, float] = Field(default_factory=dict)
    bytes_done: int = 0
    bytes_left: int = 0
    shards_left: int = 0
    price: float | None = Field(None, description="of a device-hour")

    def add(self, other: Rates) -> None:
        """Add a run of other shards."""
        self.devices = max(self.devices, other.devices)
        self.device_seconds += other.device_seconds
        self.samples += other.samples
        self.bytes_done += other.bytes_done
        self.bytes_left += other.bytes_left
        self.shards_left += other.shards_left
        self.price = other.price if self.price is None else self.price
        for part, seconds in other.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds

    def count_left(self, sizes: Iterable[int]) -> None:
        """Count input shards that the run did not include as left, given their bytes."""
        for size in sizes:
            self.shards_left += 1
            self.bytes_left += size

    @property
    def samples_per_second(self) -> float:
        """Samples per second of all devices together."""
        return self.devices * self.samples / self.device_seconds if self.device_seconds > 0 else 0.0

    @property
    def hours_left(self) -> float | None:
        """Estimated device-hours of the shards left, by bytes; None before any is done."""
        if not self.bytes_done or not self.bytes_left:
            return 0.0 if not self.bytes_left else None
        work = self.device_seconds - self.parts.get("load", 0.0)  # the rest loads the model only once, too
        return work / 3600 * self.bytes_left / self.bytes_done

    @property
    def bound(self) -> str | None:
        """The part of the work that determines the rate: "device", "decode", "read" or "write".

        None: it is not known, as of a short run, where loading took most of the time.

        The device, unless the model's thread waits for a tenth of the time; then what runs all the
        time in a thread of its own, else the threads that decode.
        """
        model, wait = self.parts.get("model"), self.parts.get("wait", 0.0)
        if model is None or 2 * (model + wait) < self.device_seconds:
            return None
        if wait < WAITS * (model + wait):
            return "device"
        alone = max(("read", "write"), key=lambda part: self.parts.get(part, 0.0))
        return alone if self.parts.get(alone, 0.0) > (1 - 2 * WAITS) * self.device_seconds else "decode"

    def lines(self) -> list[str]:
        """Lines for a terminal; empty if nothing was done."""
        if not self.samples or self.device_seconds <= 0:
            return []
        hours, images = self.device_seconds / 3600, self.unit == "images"
        worker = "device" if images else "process"
        on = f"{self.devices} {worker}{('s' if images else 'es') * (self.devices > 1)}"
        pairs = f", {self.samples / hours:,.0f} pairs per device-hour{self._cost(hours, ' so far')}" if images else ""
        out = [f"  rate: {self.samples_per_second:,.1f} {self.unit}/s on {on}{pairs}"]
        if self.parts:
            parts = {part: seconds for part, seconds in self.parts.items() if part != LIMIT}
            busy = sorted(parts.items(), key=lambda item: -item[1])
            shares = ", ".join(f"{part} {100 * s / self.device_seconds:.0f} %" for part, s in busy)
            out.append(f"  share of {worker} time (parts overlap): {shares}")
        if bound := self.bound:
            limit = self.parts.get(LIMIT)
            share = "" if limit is None else f"; {100 * limit / self.device_seconds:.0f} % of the FLOPs that it allows"
            out.append(f"  bound by: {bound}{share}")
        left = self.hours_left
        if self.shards_left and left is not None:
            out.append(
                f"  left: {self.shards_left:,} shards, about {_hours(left)} of {worker} time "
                f"({_hours(left / self.devices)} on {self.devices}){self._cost(left)}"
            )
        return out

    def _cost(self, hours: float, when: str = "") -> str:
        return "" if self.price is None else f", cost {hours * self.price:,.2f}{when}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
