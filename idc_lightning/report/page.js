"use strict";

// Everything here is a convenience: without it the page shows the same, unsorted.

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Contents: before the text for keyboards, folded in narrow windows, the present section marked.

function arrangeContents(nav) {
  nav.parentElement.prepend(nav);
  const details = nav.querySelector("details");
  const narrow = matchMedia("(max-width: 60rem)");
  const fold = () => { details.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
  nav.addEventListener("click", (event) => {
    if (narrow.matches && event.target.closest("a")) details.open = false;
  });
  markPresent(nav);
}

function markPresent(nav) {
  const links = new Map();
  for (const link of nav.querySelectorAll("details > ol > li > a")) {
    links.set(document.querySelector(link.getAttribute("href")), link);
  }
  const inside = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) inside.add(entry.target);
      else inside.delete(entry.target);
    }
    const present = [...links.keys()].find((section) => inside.has(section));
    for (const [section, link] of links) {
      if (section === present) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-15% 0px -80% 0px" });
  for (const section of links.keys()) observer.observe(section);
}

// Pictures: a click shows one alone, in its full size.

function makeOverlay() {
  const title = make("h2");
  const full = make("div", { className: "full", tabIndex: 0 });
  const close = make("button", { className: "plain", type: "button", textContent: "Close" });
  const overlay = make("dialog", {}, make("header", {}, title, close), full);
  overlay.setAttribute("aria-label", "Picture in full size");
  close.addEventListener("click", () => overlay.close());
  overlay.addEventListener("click", (event) => {
    if (event.target === full) overlay.close();
  });
  overlay.addEventListener("close", () => full.replaceChildren());
  document.body.append(overlay);
  return (image) => {
    title.textContent = image.alt;
    full.replaceChildren(make("img", {
      src: image.src, alt: image.alt,
    }));
    overlay.showModal();
  };
}

function letZoom(image, show) {
  const button = make("button", { type: "button", title: "Show in full size" });
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => show(image));
}

// Tables: sorted by a click on a heading, filtered by a word.

const letters = new Intl.Collator(undefined, { numeric: true });

function key(cell) {
  if ("missing" in cell.dataset) return null;
  return "order" in cell.dataset ? parseNumber(cell.dataset.order) : cell.textContent;
}

// Python writes inf where JavaScript knows Infinity.
function parseNumber(text) {
  return Number(text.replace("inf", "Infinity"));
}

function compare(one, other) {
  const [a, b] = [typeof one, typeof other];
  if (a !== b) return a === "number" ? -1 : 1;
  return a === "number" ? one - other || 0 : letters.compare(one, other);
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const present = [];
  const missing = [];
  for (const row of body.rows) {
    const value = key(row.cells[column]);
    if (value === null) missing.push(row);
    else present.push([value, row]);
  }
  present.sort((one, other) => direction * compare(one[0], other[0]));
  body.append(...present.map((pair) => pair[1]), ...missing);
}

function letSort(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = make("button", { type: "button", title: "Sort" }, ...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const one of headings) one.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending ? 1 : -1);
    });
  });
}

function letFilter(figure) {
  const rows = [...figure.querySelector("tbody").rows];
  const input = make("input", { type: "search" });
  const told = make("output");
  const tell = (count) => { told.textContent = `${count} of ${rows.length} rows`; };
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = ![...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
      count += row.hidden ? 0 : 1;
    }
    tell(count);
  });
  tell(rows.length);
  const label = make("label", {}, "Filter ", input);
  figure.querySelector(".rows").before(make("div", { className: "filter" }, label, told));
}

function start() {
  document.documentElement.classList.add("script");
  const nav = document.querySelector("nav");
  if (nav) arrangeContents(nav);
  const show = makeOverlay();
  for (const image of document.querySelectorAll(".view img")) letZoom(image, show);
  for (const table of document.querySelectorAll(".table table")) letSort(table);
  for (const figure of document.querySelectorAll(".table[data-filter]")) letFilter(figure);
}

start();
