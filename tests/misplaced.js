// What a reader would see as broken in the page as it stands: a list of sentences, empty if nothing.
(() => {
  const SLACK = 1; // CSS pixels: boxes are rounded
  const found = [];
  const shown = element => element.checkVisibility({ contentVisibilityAuto: true, opacityProperty: true });
  const name = element => {
    const text = element.textContent.trim().replace(/\s+/g, " ").slice(0, 40);
    return `<${element.tagName.toLowerCase()} class="${element.getAttribute("class") || ""}"> ${text}`;
  };
  const overlap = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > SLACK &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > SLACK;
  const inside = (a, b) =>
    a.left >= b.left - SLACK && a.right <= b.right + SLACK &&
    a.top >= b.top - SLACK && a.bottom <= b.bottom + SLACK;
  const pairs = function* (items) {
    for (let i = 0; i < items.length; i += 1) {
      for (let j = 0; j < i; j += 1) yield [items[j], items[i]];
    }
  };

  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) {
    found.push(`the page is ${root.scrollWidth} pixels wide in a window of ${innerWidth}`);
  }

  // siblings, but for words of a line, whose boxes may share lines, and for what is pinned
  const is_box = element => {
    const { display, position } = getComputedStyle(element);
    return shown(element) && !display.startsWith("inline") && !["absolute", "sticky", "fixed"].includes(position);
  };
  for (const parent of document.querySelectorAll("body, body *:not(svg, svg *)")) {
    const boxes = [...parent.children].filter(is_box).map(it => [it, it.getBoundingClientRect()]);
    for (const [[a, of_a], [b, of_b]] of pairs(boxes)) {
      if (overlap(of_a, of_b)) found.push(`${name(a)} overlaps ${name(b)}`);
    }
  }

  // every piece of text in its block, and in the window unless its block scrolls
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("svg, script, style") || !shown(parent)) continue;
    let block = parent;
    while (getComputedStyle(block).display.startsWith("inline")) block = block.parentElement;
    const { clipPath, whiteSpace } = getComputedStyle(block);
    if (clipPath !== "none") continue; // for screen readers alone
    range.selectNodeContents(node);
    let of_text = range.getBoundingClientRect();
    const of_block = block.getBoundingClientRect();
    if (whiteSpace === "pre-wrap" && block.scrollWidth <= block.clientWidth) {
      // spaces at the end of a line may hang over, unseen
      of_text = new DOMRect(of_block.left, of_text.top, of_block.width, of_text.height);
    }
    if (!inside(of_text, of_block)) found.push(`the text of ${name(parent)} leaves its box`);
    const scrolls = block.closest(".wide");
    if (scrolls && getComputedStyle(scrolls).overflowX !== "auto") found.push(`${name(scrolls)} cannot scroll`);
    if (!scrolls && (of_text.left < -SLACK || of_text.right > innerWidth + SLACK)) {
      found.push(`the text of ${name(parent)} leaves the window`);
    }
  }

  // plots: words beside each other, in the picture, and the legend beside the axes
  for (const plot of document.querySelectorAll("svg")) {
    if (!shown(plot)) continue;
    const box = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].map(it => [it, it.getBoundingClientRect()]);
    for (const [text, of_text] of texts) {
      if (!inside(of_text, box)) found.push(`"${text.textContent}" leaves its plot`);
    }
    for (const [[a, of_a], [b, of_b]] of pairs(texts)) {
      if (overlap(of_a, of_b)) found.push(`"${a.textContent}" overlaps "${b.textContent}" in a plot`);
    }
    for (const legend of plot.querySelectorAll(".legend")) {
      for (const axes of plot.querySelectorAll(".axes")) {
        if (overlap(legend.getBoundingClientRect(), axes.getBoundingClientRect())) found.push("a legend covers its plot");
      }
    }
  }
  return found;
})()
