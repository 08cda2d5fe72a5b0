// Progressive enhancement only: tables of benchmarks and models sorted by a click on a column's
// head, and filtered by task.
(function () {
  "use strict";
  function number(cell) {
    var text = cell.textContent.replace(/−/g, "-").replace(/,/g, "").trim();
    return /^[-+]?\.?\d/.test(text) ? parseFloat(text) : NaN;
  }
  function compare(column, direction) {
    return function (first, second) {
      var one = first.cells[column], other = second.cells[column];
      var a = number(one), b = number(other);
      if (column === 0 || (isNaN(a) && isNaN(b))) {
        return direction * one.textContent.localeCompare(other.textContent);
      }
      if (isNaN(a)) { return 1; }
      if (isNaN(b)) { return -1; }
      return direction * (a - b);
    };
  }
  function sortable(table) {
    var body = table.tBodies[0], heads = table.tHead.rows[0].cells;
    if (body.rows.length < 2) { return; }
    var order = Array.prototype.slice.call(body.rows);
    Array.prototype.forEach.call(heads, function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column; a third click restores the order";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () {
        var was = head.getAttribute("aria-sort");
        var first = column === 0 ? "ascending" : "descending";
        var second = column === 0 ? "descending" : "ascending";
        var now = was === first ? second : was === second ? "" : first;
        Array.prototype.forEach.call(heads, function (each) { each.removeAttribute("aria-sort"); });
        if (now) { head.setAttribute("aria-sort", now); }
        var rows = now ? order.slice().sort(compare(column, now === "ascending" ? 1 : -1)) : order;
        rows.forEach(function (row) { body.appendChild(row); });
      });
    });
  }
  document.querySelectorAll("#benchmarks table, #models table").forEach(sortable);

  document.querySelectorAll("[data-filter]").forEach(function (place) {
    var section = place.parentNode;
    var rows = section.querySelectorAll("tbody tr"), folded = section.querySelectorAll("details");
    var input = document.createElement("input");
    input.type = "search";
    input.placeholder = place.getAttribute("data-filter");
    input.setAttribute("aria-label", input.placeholder);
    place.appendChild(input);
    input.addEventListener("input", function () {
      var wanted = input.value.trim().toLowerCase();
      function has(text) { return text.toLowerCase().indexOf(wanted) !== -1; }
      rows.forEach(function (row) { row.hidden = !has(row.cells[0].firstChild.textContent); });
      folded.forEach(function (each) {
        var inside = each.querySelectorAll("tbody tr");
        var found = Array.prototype.some.call(inside, function (row) { return !row.hidden; });
        each.hidden = !found && !has(each.getAttribute("data-task"));
        if (wanted && found) { each.open = true; }
      });
    });
  });
})();
