for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead tr:last-child th")];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.ariaSort !== "descending" && column > 0 || head.ariaSort === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.ariaSort = down ? "descending" : "ascending";
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const missing = (row) => row.cells[column].className === "none";
    const body = table.tBodies[0];
    const sorted = [...body.rows].sort((a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const order = isNaN(value(a)) || isNaN(value(b))
        ? value(a).localeCompare(value(b)) : value(a) - value(b);
      return down ? -order : order;
    });
    body.append(...sorted);
  }));
}
for (const group of document.querySelectorAll(".panes")) {
  const panes = [...group.children];
  if (panes.length < 2) continue;
  const tabs = document.createElement("div");
  tabs.className = "tabs";
  const show = (chosen) => panes.forEach((pane, place) => {
    pane.hidden = place !== chosen;
    tabs.children[place].ariaPressed = String(place === chosen);
  });
  panes.forEach((pane, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = pane.dataset.title;
    button.addEventListener("click", () => show(place));
    tabs.append(button);
  });
  group.before(tabs);
  show(0);
}
addEventListener("beforeprint", () => {
  for (const pane of document.querySelectorAll(".panes > *")) pane.hidden = false;
});
