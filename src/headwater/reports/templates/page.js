(() => {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null; // what the reader picked; the system's preference until then
  const holder = document.getElementById("figures");
  const content = holder ? JSON.parse(holder.textContent) : { figures: [], templates: {} };
  const drawn = new Set();
  const theme = () => chosen || (system.matches ? "dark" : "light");

  function paint(name) {
    root.dataset.theme = name;
    for (const id of drawn) Plotly.relayout(id, { template: content.templates[name] });
  }
  function draw(entry) {
    if (drawn.has(entry.id)) return;
    drawn.add(entry.id);
    const place = document.getElementById(entry.id);
    const layout = { ...entry.figure.layout, autosize: true, template: content.templates[root.dataset.theme] };
    Plotly.newPlot(entry.id, entry.figure.data, layout, {
      responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    }).then(() => { fit(place); place.on("plotly_afterplot", () => fit(place)); });
  }
  // The legend wraps on a narrow screen: the space above the plot grows with it, so that it never covers the title.
  function fit(place) {
    const legend = place.querySelector(".legend");
    if (!legend) return;
    const wanted = Math.round(50 + legend.getBoundingClientRect().height + 6);
    const change = wanted - place.layout.margin.t;
    if (Math.abs(change) > 3) Plotly.relayout(place, { "margin.t": wanted, height: place.layout.height + change });
  }
  root.dataset.theme = theme();
  system.addEventListener("change", () => { if (!chosen) paint(theme()); });
  document.getElementById("theme").addEventListener("click", () => {
    chosen = theme() === "dark" ? "light" : "dark";
    paint(chosen);
  });

  // Figures inside something folded up have no width yet: they are drawn when it is opened.
  for (const entry of content.figures) {
    const folded = document.getElementById(entry.id).closest("details:not([open])");
    if (folded) folded.addEventListener("toggle", () => draw(entry), { once: true });
    else draw(entry);
  }

  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details:not([open])")) { folded.open = true; folded.dataset.wasFolded = "1"; }
    for (const entry of content.figures) draw(entry);
    paint("light");
  });
  addEventListener("afterprint", () => {
    for (const folded of document.querySelectorAll("details[data-was-folded]")) { folded.open = false; delete folded.dataset.wasFolded; }
    paint(theme());
  });

  const key = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (a === "" || b === "" || a === "-" || b === "-") return (a === "" || a === "-") - (b === "" || b === "-");
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(key(a, column), key(b, column)) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
  }
  for (const box of document.querySelectorAll("input.filter")) {
    const own = box.nextElementSibling.querySelectorAll("tbody tr");
    box.addEventListener("input", () => {
      const wanted = box.value.toLowerCase();
      for (const row of own) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
})();
