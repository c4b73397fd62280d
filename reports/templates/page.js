(() => {
  "use strict";
  const root = document.documentElement;

  // Theme: the system's choice until the reader makes one.
  const button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light mode" : "Dark mode"; };
  if (stored()) root.dataset.theme = stored();
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private window */ }
    label();
  });

  // Sorting: rows move only inside their own body, so control and published rows stay where they are.
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const key = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? parseFloat(cell.dataset.v) : cell.classList.contains("missing") ? null : cell.textContent.trim();
  };
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b)));
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const first = head.classList.contains("num") ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of heads) one.setAttribute("aria-sort", one === head ? direction : "none");
      for (const body of table.tBodies) {
        const rows = [...body.rows].map((row, i) => [key(row, column), i, row]);
        rows.sort(([a, i], [b, j]) => {
          if (a === null || b === null) return (a === null) - (b === null) || i - j;
          return (direction === "ascending" ? order(a, b) : order(b, a)) || i - j;
        });
        body.append(...rows.map((entry) => entry[2]));
      }
    }));
  }

  // Filter: every word must occur in the row; control rows always stay.
  for (const field of document.querySelectorAll(".filter")) {
    field.hidden = false;
    const bodies = field.closest("section").querySelectorAll("tbody:not(.control)");
    field.querySelector("input").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const body of bodies) for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  // Provenance: on pointing, on focus and on tap.
  const tip = document.getElementById("tip");
  let owner = null;
  const hide = () => { tip.hidden = true; owner?.removeAttribute("aria-describedby"); owner = null; };
  const show = (target) => {
    if (owner === target) return;
    hide();
    owner = target;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    target.setAttribute("aria-describedby", "tip");
    const box = target.getBoundingClientRect();
    const left = Math.min(Math.max(12, box.left), root.clientWidth - tip.offsetWidth - 12);
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${scrollY + (below ? box.bottom + 6 : Math.max(6, box.top - tip.offsetHeight - 6))}px`;
  };
  for (const target of document.querySelectorAll(".tip")) {
    target.dataset.tip = target.title;
    target.removeAttribute("title");
  }
  const at = (event) => event.target.closest?.(".tip");
  document.addEventListener("pointerover", (event) => { if (event.pointerType === "mouse") { const target = at(event); if (target) show(target); else if (!tip.contains(event.target)) hide(); } });
  document.addEventListener("focusin", (event) => { const target = at(event); if (target) show(target); else hide(); });
  document.addEventListener("click", (event) => { const target = at(event); if (target) show(target); else if (!tip.contains(event.target)) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  for (const area of document.querySelectorAll(".scroll")) area.addEventListener("scroll", hide, { passive: true });
})();
