// What the page does beyond being read: everything is there and works without this, but for what is named here.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

// The contents mark where one is; on a narrow screen they fold into a bar.
const nav = document.getElementById("TOC"), fold = nav.querySelector("details");
const narrow = matchMedia("(max-width: 66rem)");
const fit = () => { fold.open = !narrow.matches; };
narrow.addEventListener("change", fit);
fit();
const entries = all("a", nav).map((link) => [link, document.getElementById(link.hash.slice(1))]);
function mark() {
  const passed = entries.filter(([, section]) => section.getBoundingClientRect().top < innerHeight / 4);
  const [link] = passed.at(-1) ?? entries[0] ?? [];
  if (!link || link.ariaCurrent) return;
  entries.forEach(([other]) => other.removeAttribute("aria-current"));
  link.ariaCurrent = "true";
  document.getElementById("here").textContent = passed.length ? link.textContent : "";
  if (!nav.contains(document.activeElement)) nav.scrollTop = link.offsetTop - nav.clientHeight / 2;
}
addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
nav.addEventListener("click", (event) => { if (event.target.closest("a")) fit(); });
mark();

// One switch for all code; what is folded is opened for the printer, but for the code of the steps.
const codes = all("details.code"), codeSwitch = document.getElementById("code-switch");
codeSwitch.hidden = !codes.length;
codeSwitch.addEventListener("click", () => {
  const open = codeSwitch.ariaPressed !== "true";
  codeSwitch.ariaPressed = String(open);
  codes.forEach((code) => { code.open = open; });
});
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("main details:not([open], .step)");
  closed.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));

// A box that scrolls can be reached by keyboard; one that does not is no stop.
const boxes = new ResizeObserver((changes) => changes.forEach(({ target }) => {
  target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
}));
all(".scroll, div.sourceCode, .equation").forEach((box) => boxes.observe(box));

// Tables sort by a column, numbers by their size, and back.
function size(text) {
  const found = text.replaceAll("−", "-").replace(/(\d),(?=\d{3})/g, "$1")
    .match(/^[+<>~]?\s*(-?(?:inf|\d*\.?\d+(?:e[+-]?\d+)?))(?: × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/);
  if (!found) return NaN;
  const power = (found[2] ?? "⁰").replace(/./g, (sign) => (sign === "⁻" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(sign)));
  return Number(found[1].replace("inf", "Infinity")) * 10 ** power;
}
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.ariaSort !== "ascending", body = table.tBodies[0];
      const text = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows], numbers = rows.every((row) => !text(row) || !isNaN(size(text(row))));
      const order = (a, b) => (numbers ? (size(a) - size(b) || 0) : a.localeCompare(b, "en", { numeric: true }));
      rows.sort((a, b) => (up ? 1 : -1) * order(text(a), text(b)));
      body.append(...rows);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = up ? "ascending" : "descending";
    });
  });
}

// What a reference or a citation leads to, shown beside it on hover and on focus; Escape hides it.
const preview = make("div", { className: "preview", id: "preview", role: "tooltip", hidden: true });
document.body.append(preview);
let shown = null, timer = 0;
function hide() {
  clearTimeout(timer);
  shown?.removeAttribute("aria-describedby");
  shown = null;
  preview.hidden = true;
}
function show(link) {
  const target = document.getElementById(link.hash.slice(1));
  if (!target || shown === link) return clearTimeout(timer);
  hide();
  const parts = target.matches("section") ? [...target.children].slice(0, 2) : [target];
  preview.replaceChildren(...parts.map((part) => part.cloneNode(true)));
  all("a.data, summary, .equation-number, tbody tr:nth-child(n+7)", preview).forEach((part) => part.remove());
  all("button", preview).forEach((button) => button.replaceWith(...button.childNodes));
  all("details", preview).forEach((details) => details.replaceWith(...details.childNodes));
  all("*", preview).forEach((part) => ["id", "href", "tabindex", "role"].forEach((name) => part.removeAttribute(name)));
  preview.hidden = false;
  link.setAttribute("aria-describedby", "preview");
  shown = link;
  const place = link.getBoundingClientRect(), height = preview.offsetHeight;
  const above = place.bottom + height + 16 > innerHeight && place.top > height + 16;
  preview.style.top = `${scrollY + (above ? place.top - height - 6 : place.bottom + 6)}px`;
  preview.style.left = `${Math.max(16, Math.min(place.left, document.documentElement.clientWidth - preview.offsetWidth - 16))}px`;
}
const later = (act, wait) => { clearTimeout(timer); timer = setTimeout(act, wait); };
for (const link of all("main a[href^='#']:not([aria-hidden])")) {
  link.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") later(() => show(link), 150); });
  link.addEventListener("pointerleave", () => later(hide, 250));
  link.addEventListener("focus", () => { if (link.matches(":focus-visible")) show(link); });
  link.addEventListener("blur", hide);
}
preview.addEventListener("pointerenter", () => clearTimeout(timer));
preview.addEventListener("pointerleave", () => later(hide, 250));
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
