"""What `tidegate quantize` tells: a table, a JSON file and the size-accuracy frontier as SVG. Refuses to know how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from backends.engine.allocate import Choice
from backends.engine.quant import QuantTensor
from backends.engine.recipes import class_of

CAPTION = "accuracy = 1 / perplexity ratio. Line: expected; points: measured (hollow: not ours); dashed: the limits"


@dataclass(frozen=True, slots=True)
class Scale:
    """Turns bytes of matrices into the share of fp16 that the whole weights file has."""

    fp16_bytes: int
    overhead_bytes: int

    def share(self, matrix_bytes: int) -> float:
        """Bytes of the file over the bytes of the same weights in fp16, a tied matrix counted once."""
        return (matrix_bytes + self.overhead_bytes) / self.fp16_bytes

    def budget(self, share: float) -> int:
        """Bytes left for matrices in a file of this share."""
        return int(share * self.fp16_bytes) - self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Marker:
    """A named point of the plot; what was not made by the search is drawn hollow."""

    name: str
    share: float
    accuracy: float
    is_ours: bool = True


def classes_table(rounded: Mapping[str, QuantTensor]) -> Table:
    """Show what each tensor class got."""
    table = Table("tensors", "schemes (units)", "bits a weight", "MiB", title="what was chosen")
    for name in dict.fromkeys(map(class_of, rounded)):
        members = {unit: tensor for unit, tensor in rounded.items() if class_of(unit) == name}
        nbytes = sum(tensor.nbytes for tensor in members.values())
        weights = sum(tensor.codes.size for tensor in members.values())
        table.add_row(name, _counts(members), f"{8 * nbytes / weights:.2f}", f"{nbytes / 2**20:.1f}")
    return table


def sensitivity_table(options: Mapping[str, Sequence[Choice]]) -> Table:
    """Show what each tensor class would cost at each width, in thousandths of a nat a token."""
    widths = (3, 4, 5, 6, 8)
    table = Table("tensors", *(f"{bits} bits" for bits in widths), title="expected loss, millinats a token")
    for name, losses in sensitivity(options).items():
        table.add_row(name, *(f"{1000 * losses[str(bits)]:.2f}" for bits in widths))
    return table


def sensitivity(options: Mapping[str, Sequence[Choice]]) -> dict[str, dict[str, float]]:
    """Add up, by tensor class, the loss of the best scheme of each width."""
    found: dict[str, dict[str, float]] = {}
    for unit, choices in options.items():
        losses = found.setdefault(class_of(unit), {})
        for bits in {choice.scheme.bits for choice in choices}:
            least = min(choice.loss for choice in choices if choice.scheme.bits == bits)
            losses[str(bits)] = losses.get(str(bits), 0.0) + least
    return found


def frontier_svg(curve: Sequence[tuple[float, float]], markers: Sequence[Marker], wanted: Marker) -> str:
    """Draw expected accuracy over size, the measured points, and the two limits as lines."""
    frame = _frame(curve, markers, wanted)
    line = " ".join(
        f"{frame.x(share):.1f},{frame.y(accuracy):.1f}" for share, accuracy in curve if share <= frame.right
    )
    return "\n".join(
        (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 420" font-family="sans-serif" font-size="13">',
            '<rect width="720" height="420" fill="white"/>',
            *frame.axes(),
            *frame.limits(wanted),
            f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/>',
            *(frame.marker(marker) for marker in markers),
            "</svg>\n",
        )
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plot's ranges; maps values to pixels."""

    left: float
    right: float
    low: float
    high: float

    def x(self, share: float) -> float:
        return 70 + 620 * (share - self.left) / (self.right - self.left)

    def y(self, accuracy: float) -> float:
        clipped = min(max(accuracy, self.low), self.high)
        return 360 - 320 * (clipped - self.low) / (self.high - self.low)

    def axes(self) -> list[str]:
        lines = ['<path d="M70 40V360H690" fill="none" stroke="#444"/>']
        for percent in range(-(-int(100 * self.left) // 5) * 5, int(100 * self.right) + 1, 5):
            if (at := self.x(percent / 100)) >= 70:
                lines.append(f'<path d="M{at:.1f} 360v5" stroke="#444"/>')
                lines.append(f'<text x="{at:.1f}" y="382" text-anchor="middle">{percent} %</text>')
        for hundredths in range(round(100 * self.low), 101, 2 if self.low > 0.85 else 5):
            y = self.y(hundredths / 100)
            lines.append(f'<path d="M70 {y:.1f}H690" stroke="#e5e7eb"/>')
            lines.append(f'<text x="62" y="{y + 4:.1f}" text-anchor="end">{hundredths / 100:.2f}</text>')
        lines.append('<text x="380" y="408" text-anchor="middle">size, share of fp16</text>')
        lines.append(f'<text x="70" y="24">{CAPTION}</text>')
        return lines

    def limits(self, wanted: Marker) -> list[str]:
        x, y = self.x(wanted.share), self.y(wanted.accuracy)
        return [f'<path d="M{x:.1f} 40V360M70 {y:.1f}H690" stroke="#dc2626" stroke-dasharray="4 4" fill="none"/>']

    def marker(self, marker: Marker) -> str:
        x, y = self.x(marker.share), self.y(marker.accuracy)
        anchor, shift = ("end", -8) if x > 560 else ("start", 8)
        name = f'<text x="{x + shift:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{marker.name}</text>'
        fill = "#111827" if marker.is_ours else "white"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="#111827"/>{name}'


def _frame(curve: Sequence[tuple[float, float]], markers: Sequence[Marker], wanted: Marker) -> _Frame:
    shares = [curve[0][0], wanted.share, *(marker.share for marker in markers)]
    right = max(0.55, *shares) + 0.02
    accuracies = [wanted.accuracy, *(marker.accuracy for marker in markers)]
    low = max(0, math.floor(10 * min(0.9, *accuracies))) / 10
    return _Frame(min(shares) - 0.01, right, low, max(1.0, *accuracies) + 0.002)


def _counts(members: Mapping[str, QuantTensor]) -> str:
    schemes = [str(tensor.scheme) for tensor in members.values()]
    return ", ".join(f"{scheme} ({schemes.count(scheme)})" for scheme in sorted(set(schemes)))
