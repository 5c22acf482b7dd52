"""Contrast of what is on a page, as WCAG 2.2 defines it: relative luminance, so that hue does not count."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

TEXT = 4.5  # success criterion 1.4.3, level AA
LARGE_TEXT = 3.0
GRAPHICS = 3.0  # success criterion 1.4.11

_MEASURE = """
() => {
  const channels = (color) => {
    const context = Object.assign(new OffscreenCanvas(1, 1)).getContext("2d");
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, bottom) => {
    const mixed = [0, 1, 2].map((i) => (top[i] * top[3] + bottom[i] * (255 - top[3])) / 255);
    return [...mixed, 255];
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(channels(getComputedStyle(e).backgroundColor));
      if (layers.at(-1)[3] === 255) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), channels("white"));
  };
  const found = [];
  const add = (what, color, element, kind) => {
    const ground = behind(element);
    found.push({ what, kind, ratio: ratio(over(channels(color), ground), ground) });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("option, .unseen") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    add(node.data.trim(), style.color, element, large ? "large text" : "text");
  }
  const graphics = { "svg .line": "stroke", ".meter i": "backgroundColor", "button, input, select": "borderTopColor" };
  for (const [selector, property] of Object.entries(graphics)) {
    for (const element of document.querySelectorAll(selector)) {
      if (!element.checkVisibility()) continue;
      add(selector, getComputedStyle(element)[property], element.parentElement, "graphics");
    }
  }
  return found;
}
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """What something on the page has of contrast, and what it needs."""

    what: str
    ratio: float
    needed: float


def contrasts(page: Page) -> list[Contrast]:
    """Every visible text, line, bar and control of a page."""
    needed = {"text": TEXT, "large text": LARGE_TEXT, "graphics": GRAPHICS}
    return [
        Contrast(what=found["what"], ratio=found["ratio"], needed=needed[found["kind"]])
        for found in page.evaluate(_MEASURE)
    ]
