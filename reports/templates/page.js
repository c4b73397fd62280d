(() => {
  "use strict";
  const root = document.documentElement;
  const make = (tag, values = {}, ...inside) => { const node = Object.assign(document.createElement(tag), values); node.append(...inside); return node; };
  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const plural = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

  // The address keeps what the reader chose, so that it can be sent to somebody: #table.sort=-3&table.q=moco&table.hide=4.5
  const state = new URLSearchParams();
  const read = () => {
    for (const name of [...state.keys()]) state.delete(name);
    if (location.hash.includes("=")) for (const [name, value] of new URLSearchParams(location.hash.slice(1))) state.set(name, value);
  };
  const keep = (name, value) => {
    if (value) state.set(name, value); else state.delete(name);
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  };
  const applied = [];
  const apply = (first) => {
    read();
    for (const one of applied) one();
    const target = document.getElementById([...state.keys()].map((name) => name.split(".")[0])[0] || "");
    if (first && target) target.scrollIntoView();
  };
  read();

  // Theme: the system's choice until the reader makes one.
  const button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `${button.textContent} theme`); };
  if (stored()) root.dataset.theme = stored();
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private window */ }
    label();
  });

  // Rows: those in the page are read, the others are built from compact data when they are to be seen.
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b)));
  const fromNode = (node) => ({
    node,
    cells: [...node.cells].map((cell) => ({
      text: cell.textContent.trim(),
      value: "v" in cell.dataset ? parseFloat(cell.dataset.v) : null,
      missing: cell.classList.contains("missing"),
    })),
  });
  const fromData = (cells, lines) => ({
    node: null, lines,
    cells: cells.map((cell) => {
      const [text, value = null, kind = "", link = "", said = []] = typeof cell === "string" ? [cell] : cell;
      return { text, value, kind, link, said, missing: kind === "missing" };
    }),
  });
  const build = (row, heads) => {
    row.node = make("tr");
    row.cells.forEach((cell, i) => {
      const node = make(i ? "td" : "th");
      if (!i) node.scope = "row";
      const number = heads[i].classList.contains("num");
      node.className = [number ? "num" : "", cell.kind, !number && cell.text.length > 40 ? "long" : ""].filter(Boolean).join(" ");
      const parts = number ? cell.text.match(/^(.+?)( ± .*| \[.*)$/s) : null;
      const text = parts ? [parts[1], make("span", { className: "pm" }, parts[2])] : [cell.text];
      const said = cell.said.map((line) => row.lines[line]).join("\n");
      if (cell.link) node.append(make("a", { href: cell.link }, ...text));
      else if (!said) node.append(...text);
      if (said) {
        const tip = make("button", { type: "button", className: cell.link ? "tip info" : "tip" }, ...(cell.link ? ["i"] : text));
        if (cell.link) tip.setAttribute("aria-label", `Provenance of ${cell.text}`);
        tip.dataset.tip = said;
        node.append(tip);
      }
      row.node.append(node);
    });
    return row.node;
  };
  const STEP = 50;

  // A table: rows move only inside their own body, so control and published rows stay where they are.
  for (const section of document.querySelectorAll("section.table")) {
    const table = section.querySelector("table");
    if (!table) continue;
    const id = section.id, heads = [...table.tHead.rows[0].cells], tools = section.querySelector(".tools");
    const data = JSON.parse(section.querySelector("script.rows")?.textContent ?? "null");
    const bodies = [...table.tBodies].map((node, b) => ({
      node, control: node.classList.contains("control"),
      rows: [...[...node.rows].map(fromNode), ...(data ? data.bodies[b].map((cells) => fromData(cells, data.lines)) : [])],
    }));
    for (const body of bodies) body.original = body.rows;
    const count = bodies.reduce((sum, body) => sum + body.rows.length, 0);
    let limit = data ? STEP : Infinity;
    const status = make("span", { role: "status" });
    const more = make("button", { type: "button", className: "more", hidden: true });
    const has = (row, wanted) => {
      row.text ??= row.cells.map((cell) => cell.text).join(" ").toLowerCase();
      return wanted.every((word) => row.text.includes(word));
    };
    const draw = () => {
      const wanted = words(state.get(`${id}.q`) ?? "");
      let left = limit, found = 0;
      for (const body of bodies) {
        const rows = wanted.length && !body.control ? body.rows.filter((row) => has(row, wanted)) : body.rows;
        const shown = rows.slice(0, Math.max(left, 0));
        left -= shown.length;
        found += rows.length;
        body.node.replaceChildren(...shown.map((row) => row.node ?? build(row, heads)));
      }
      more.hidden = found <= limit;
      more.textContent = `Show ${plural(Math.min(5 * STEP, found - limit), "more row")}`;
      status.textContent = wanted.length ? `${found.toLocaleString("en")} of ${plural(count, "row")}` : data ? plural(count, "row") : "";
    };
    more.addEventListener("click", () => { limit += 5 * STEP; draw(); });
    section.querySelector(".scroll").after(more);

    const key = (row, column) => { const cell = row.cells[column]; return cell.value ?? (cell.missing ? null : cell.text); };
    const sort = () => {
      const chosen = state.get(`${id}.sort`) ?? "", column = Math.abs(parseInt(chosen, 10)) - 1, down = chosen.startsWith("-");
      heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"));
      for (const body of bodies) {
        if (!(column in heads)) { body.rows = body.original; continue; }
        // Texts are compared once each and then stand for their rank: ten thousand rows have few different ones.
        const values = body.original.map((row) => key(row, column)), known = values.filter((value) => value !== null);
        const plain = known.every((value) => typeof value === "number");
        const rank = plain ? null : new Map([...new Set(known)].sort(order).map((value, i) => [value, i]));
        const keys = Float64Array.from(values, (value) => (value === null ? Infinity : (plain ? value : rank.get(value)) * (down ? -1 : 1)));
        body.rows = [...keys.keys()].sort((i, j) => keys[i] - keys[j] || i - j).map((i) => body.original[i]);
      }
    };
    heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
      const first = head.classList.contains("num") && !/\brank$/i.test(head.querySelector("span").firstChild.textContent) ? "-" : "", other = first ? "" : "-";
      const now = state.get(`${id}.sort`);
      keep(`${id}.sort`, now === `${first}${i + 1}` ? `${other}${i + 1}` : now === `${other}${i + 1}` ? "" : `${first}${i + 1}`);
      sort();
      draw();
    }));

    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    const hide = () => {
      const hidden = (state.get(`${id}.hide`) ?? "").split(".").map(Number).filter((n) => n > 1 && n <= heads.length);
      sheet.replaceSync(hidden.map((n) => `#${CSS.escape(id)} tr > :nth-child(${n}) { display: none }`).join("\n"));
      for (const box of tools.querySelectorAll("fieldset input")) box.checked = !hidden.includes(Number(box.value));
    };
    if (heads.length > 4) {
      const boxes = heads.slice(1).map((head, i) => {
        const [name, tail] = [head.querySelector("span").firstChild.textContent, head.querySelector("small")?.textContent];
        return make("label", {}, make("input", { type: "checkbox", checked: true, value: String(i + 2) }), name, ...(tail ? [make("small", {}, tail)] : []));
      });
      const field = make("fieldset", {}, ...boxes);
      field.setAttribute("aria-label", "Columns shown");
      field.addEventListener("change", () => {
        keep(`${id}.hide`, [...field.querySelectorAll("input:not(:checked)")].map((box) => box.value).join("."));
        hide();
      });
      const menu = make("details", { className: "cols" }, make("summary", {}, "Columns"), field);
      document.addEventListener("click", (event) => { if (!menu.contains(event.target)) menu.open = false; });
      menu.addEventListener("keydown", (event) => { if (event.key === "Escape") { menu.open = false; menu.firstChild.focus(); } });
      tools.append(menu);
    }
    let field = null;
    if (count > 5) {
      field = make("input", { type: "search", placeholder: "Filter rows", autocomplete: "off" });
      field.setAttribute("aria-label", `Filter rows of ${section.querySelector("h3").textContent}`);
      field.addEventListener("input", () => { keep(`${id}.q`, field.value.trim()); draw(); });
      tools.prepend(status, field);
    }
    tools.hidden = false;
    applied.push(() => {
      if (field && document.activeElement !== field) field.value = state.get(`${id}.q`) ?? "";
      sort();
      hide();
      draw();
    });
  }

  // Search: every word must occur in a page's title, name or contents; titles that hold them come first.
  const search = document.getElementById("search");
  if (search) {
    const pages = JSON.parse(document.getElementById("search-pages").textContent).map(([title, file, group, more]) => ({ title, file, group, head: title.toLowerCase(), all: `${title} ${group} ${more}`.toLowerCase() }));
    const field = document.getElementById("search-words"), list = document.getElementById("search-found"), status = document.getElementById("search-status");
    search.hidden = false;
    const find = () => {
      const wanted = words(field.value);
      const found = wanted.length ? pages.filter((page) => wanted.every((word) => page.all.includes(word))) : [];
      const rank = (page) => (wanted.every((word) => page.head.includes(word)) ? 0 : 1);
      found.sort((a, b) => rank(a) - rank(b));
      list.replaceChildren(...found.slice(0, 12).map((page) => make("li", {}, make("a", { href: page.file }, page.title), make("small", {}, page.group || "Views"))));
      status.textContent = wanted.length ? (found.length ? `${plural(found.length, "page")}${found.length > 12 ? ", the first 12:" : ""}` : "No page has all of these words.") : "";
    };
    field.addEventListener("input", () => { keep("search", field.value.trim()); find(); });
    applied.push(() => {
      if (document.activeElement !== field) field.value = state.get("search") ?? "";
      if (location.hash.startsWith("#search=")) field.focus();
      find();
    });
  }

  // Any two runs side by side.
  for (const section of document.querySelectorAll("section.versus")) {
    const data = JSON.parse(section.querySelector("script").textContent), form = section.querySelector("form"), table = section.querySelector("table");
    for (const name of ["a", "b"]) form[name].append(...data.names.map((run, i) => make("option", { value: String(i) }, run)));
    const shown = (value) => (value === null ? "–" : typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 3 }) : value);
    const draw = () => {
      const [a, b] = [form.a.value, form.b.value].map(Number);
      [a, b].forEach((i, n) => table.tHead.rows[0].cells[n + 1].replaceChildren(data.links[i] ? make("a", { href: data.links[i] }, data.names[i]) : data.names[i]));
      let heading = null, body = null;
      const bodies = [];
      data.rows.forEach(([group, name], i) => {
        const [x, y] = [data.values[a][i], data.values[b][i]];
        if ((x === null && y === null) || (form.only.checked && x === y)) return;
        if (group !== heading) {
          heading = group;
          const title = make("th", { scope: "rowgroup", colSpan: 4 }, group);
          bodies.push(body = make("tbody", {}, make("tr", {}, title)));
        }
        const gap = typeof x === "number" && typeof y === "number" ? y - x : null;
        const sign = gap === null ? (x === null || y === null ? "" : x === y ? "same" : "differs") : gap ? `${gap < 0 ? "−" : "+"}${shown(Math.abs(gap))}` : "0";
        const cells = [shown(x), shown(y), sign].map((text) => make("td", { className: "num" }, text));
        if (x !== y) cells[2].classList.add("up");
        body.append(make("tr", {}, make("th", { scope: "row" }, name), ...cells));
      });
      for (const old of [...table.tBodies]) old.remove();
      table.append(...bodies);
    };
    form.addEventListener("change", () => {
      keep(`${section.id}.a`, data.names[form.a.value]);
      keep(`${section.id}.b`, data.names[form.b.value]);
      keep(`${section.id}.only`, form.only.checked ? "1" : "");
      draw();
    });
    form.hidden = table.hidden = false;
    applied.push(() => {
      ["a", "b"].forEach((name, n) => {
        const at = data.names.indexOf(state.get(`${section.id}.${name}`));
        form[name].value = String(at < 0 ? Math.min(n, data.names.length - 1) : at);
      });
      form.only.checked = state.get(`${section.id}.only`) === "1";
      draw();
    });
  }
  apply(true);
  addEventListener("hashchange", () => apply(true));

  // Provenance: on pointing, on focus and on tap.
  const tip = document.getElementById("tip");
  let owner = null;
  const hide = () => { tip.hidden = true; owner?.removeAttribute("aria-describedby"); owner = null; };
  const show = (target) => {
    if (owner === target) return;
    hide();
    owner = target;
    if (target.title) { target.dataset.tip = target.title; target.removeAttribute("title"); }
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    target.setAttribute("aria-describedby", "tip");
    const box = target.getBoundingClientRect();
    const left = Math.min(Math.max(12, box.left), root.clientWidth - tip.offsetWidth - 12);
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${scrollY + (below ? box.bottom + 6 : Math.max(6, box.top - tip.offsetHeight - 6))}px`;
  };
  const at = (event) => event.target.closest?.(".tip");
  document.addEventListener("pointerover", (event) => { if (event.pointerType === "mouse") { const target = at(event); if (target) show(target); else if (!tip.contains(event.target)) hide(); } });
  document.addEventListener("focusin", (event) => { const target = at(event); if (target) show(target); else hide(); });
  document.addEventListener("click", (event) => { const target = at(event); if (target) show(target); else if (!tip.contains(event.target)) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  for (const area of document.querySelectorAll(".scroll")) area.addEventListener("scroll", hide, { passive: true });
})();
