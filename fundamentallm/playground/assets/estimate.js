// Size, memory and measured speed of the training that is set up. The value is JSON from the server.
(() => {
  const find = (selector) => element.querySelector(selector);
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const formats = {
    parameters: (v) => short.format(v),
    memory_bytes: (v) => (v >= 1e9 ? `${(v / 1e9).toFixed(1)} GB` : `${Math.max(1, Math.round(v / 1e6))} MB`),
    steps: (v) => `≈ ${v < 100 ? Math.max(1, Math.round(v)) : short.format(v)}`,
    tokens_per_second: (v) => short.format(v),
  };

  function show() {
    let figures;
    try {
      figures = JSON.parse(props.value || "{}");
    } catch {
      return;
    }
    const root = find(".fl-estimate");
    if (!root) return;
    const known = typeof figures.parameters === "number";
    root.dataset.state = figures.error ? "error" : known ? "known" : "waiting";
    for (const [name, format] of Object.entries(formats)) {
      const value = figures[name];
      find(`[data-figure="${name}"]`).textContent = typeof value === "number" ? format(value) : figures.error ? "–" : "…";
    }
    if (figures.error || figures.note) find(".fl-estimate-note").textContent = figures.error || figures.note;
  }

  watch("value", show);
  show();
})();
