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
const close = () => { if (narrow.matches) fold.open = false; };
addEventListener("pointerdown", (event) => { if (!nav.contains(event.target)) close(); });
const entries = all("a", nav).map((link) => [link, document.getElementById(link.hash.slice(1))]);
function mark() { // the section whose heading is the last to have come to the top, where its entry leads
  const passed = entries.filter(([, section]) => section.getBoundingClientRect().top < 100);
  const [link] = passed.at(-1) ?? [];
  if (link?.ariaCurrent) return;
  entries.forEach(([other]) => other.removeAttribute("aria-current"));
  document.getElementById("here").textContent = link?.textContent ?? "";
  if (!link) return;
  link.ariaCurrent = "true";
  if (!nav.contains(document.activeElement)) nav.scrollTop = link.offsetTop - nav.clientHeight / 2;
}
addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
nav.addEventListener("click", (event) => { if (event.target.closest("a")) close(); });
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

// A box that scrolls can be reached by keyboard, and fades where it goes on; one that does not is no stop.
function cue(box) {
  const hidden = box.scrollWidth - box.clientWidth;
  box.tabIndex = hidden > 0 ? 0 : -1;
  box.classList.toggle("goes-on-left", box.scrollLeft > 1);
  box.classList.toggle("goes-on-right", hidden - box.scrollLeft > 1);
}
const boxes = new ResizeObserver((changes) => changes.forEach(({ target }) => cue(target)));
for (const box of all(".scroll, div.sourceCode, .equation")) {
  boxes.observe(box);
  box.addEventListener("scroll", () => cue(box), { passive: true });
}

// Tables sort by a column, numbers by their size, and back; what is no number, or nothing, comes last both ways.
function size(text) {
  const found = text.replaceAll("−", "-").replace(/(\d),(?=\d{3})/g, "$1")
    .match(/^[+<>~]?\s*(-?(?:inf|\d*\.?\d+(?:e[+-]?\d+)?))(?:\s×\s10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/);
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
      const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
      const digits = rows.filter(([text]) => /\d/.test(text));
      const numbers = digits.length && digits.every(([text]) => !isNaN(size(text)));
      const last = (text) => (numbers ? isNaN(size(text)) : !text || text === "—");
      const order = (a, b) => (numbers ? (size(a) - size(b) || 0) : a.localeCompare(b, "en", { numeric: true }));
      rows.sort(([a], [b]) => last(a) - last(b) || (last(a) ? 0 : (up ? 1 : -1) * order(a, b)));
      body.append(...rows.map(([, row]) => row));
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
  all("button, details", preview).forEach((box) => box.replaceWith(...box.childNodes));
  all("*", preview).forEach((part) => ["id", "href", "tabindex", "role"].forEach((name) => part.removeAttribute(name)));
  preview.hidden = false;
  link.setAttribute("aria-describedby", "preview");
  shown = link;
  preview.style.maxHeight = "";
  const place = link.getBoundingClientRect(), bar = narrow.matches ? nav.offsetHeight : 0;
  const over = place.top - bar - 12, under = innerHeight - place.bottom - 12;
  const above = preview.offsetHeight > under && over > under;
  preview.style.maxHeight = `min(24rem, ${above ? over : under}px)`;
  const height = preview.offsetHeight;
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
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hide();
  if (fold.contains(document.activeElement) && narrow.matches) fold.querySelector("summary").focus();
  close();
});
