"use strict";
(async () => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  for (const button of all(".copy")) {
    button.addEventListener("click", () => {
      const code = button.previousElementSibling;
      getSelection().selectAllChildren(code);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  // Cells such as "0.948, 0.95" are ordered by their first number, and "step 12, after 3 s" by the text and its numbers.
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  const compare = (a, b) => parseFloat(a) - parseFloat(b) || order(a, b);
  for (const button of all(".sorts .sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), body = button.closest("table").tBodies[0];
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [row.cells[head.cellIndex].textContent.trim(), row]);
      body.append(...keyed.sort((a, b) => sign * compare(a[0], b[0])).map((pair) => pair[1]));
    });
  }

  const search = document.getElementById("search");
  if (search) {
    const rows = [...document.getElementById("table").tBodies[0].rows].map((row) => ({
      row,
      text: row.textContent.toLowerCase(),
      rule: row.cells[3].textContent.trim(),
      verdict: row.cells[4].textContent.trim(),
    }));
    const rule = document.getElementById("rule"), verdict = document.getElementById("verdict");
    const filter = () => {
      const wanted = search.value.toLowerCase();
      let count = 0;
      for (const one of rows) {
        const fits = (!rule.selectedIndex || one.rule === rule.selectedOptions[0].textContent.trim())
          && (!verdict.value || one.verdict === verdict.value) && one.text.includes(wanted);
        one.row.hidden = !fits;
        count += fits;
      }
      document.getElementById("count").textContent = `${count} of ${rows.length} rows`;
    };
    search.addEventListener("input", filter);
    for (const select of [rule, verdict]) select.addEventListener("change", filter);
  }

  // The library is compressed; the policy of the page allows this script and that one, by their hashes, and no other.
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const library = document.createElement("script");
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  library.textContent = await new Response(unpacked).text();
  document.head.append(library);

  const plots = all(".plot").map((place) => {
    return { place, json: place.querySelector("script").textContent, hidden: new Set(), drawn: false };
  });
  const hidden = new Set();
  const draw = (plot) => {
    const style = getComputedStyle(document.documentElement);
    const figure = JSON.parse(plot.json, (key, value) => {
      const isNamed = /color$/.test(key) && typeof value === "string" && value[0] === "@";
      if (!isNamed) return value;
      const [name, opacity = ""] = value.slice(1).split("+");
      return style.getPropertyValue(`--${name}`).trim() + opacity;
    });
    for (const trace of figure.data) {
      trace.visible = !plot.hidden.has(trace.legendgroup) && !hidden.has(trace.meta?.run);
    }
    figure.layout.font.family = getComputedStyle(document.body).fontFamily;
    plot.drawn = true;
    return Plotly.react(plot.place, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  };
  for (const plot of plots) {
    for (const key of all(".key", plot.place.parentNode)) {
      key.addEventListener("click", () => {
        const shows = key.ariaPressed !== "true";
        key.ariaPressed = String(shows);
        plot.hidden[shows ? "delete" : "add"](key.dataset.group);
        draw(plot);
      });
    }
  }
  const seen = new IntersectionObserver((entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    plots.filter((plot) => !plot.drawn && near.includes(plot.place)).forEach(draw);
  }, { rootMargin: "400px" });
  for (const plot of plots) seen.observe(plot.place);

  const again = () => plots.filter((plot) => plot.drawn).forEach(draw);
  for (const box of all("[data-run]")) {
    const pick = () => {
      hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
      again();
    };
    if (!box.checked) pick(); // a browser may remember it
    box.addEventListener("change", pick);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => plots.forEach(draw));
})();
