// The ladder as horizontal bars, best at the bottom; drawn anew when the page turns dark or light.
let drawn = [];
const draw = () => {
  root.style.display = drawn.length ? "" : "none";
  root.style.height = 34 * drawn.length + 112 + "px";
  // In a tab that is not open there is no width to draw in; the observer below comes back.
  if (!drawn.length || !root.offsetWidth || typeof Plotly === "undefined") return;
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  const fill = { model: colour("--fl-accent"), ngram: colour("--neutral-400"), compressor: colour("--neutral-500") };
  const longest = Math.max(...drawn.map((rung) => rung.bits_per_byte));
  const trace = {
    type: "bar",
    orientation: "h",
    x: drawn.map((rung) => rung.bits_per_byte),
    y: drawn.map((rung) => rung.name),
    text: drawn.map((rung) => rung.bits_per_byte.toFixed(2)),
    textposition: "outside",
    cliponaxis: false,
    customdata: drawn.map((rung) => rung.description),
    hovertemplate: "%{customdata}<br>%{x:.3f} bits per byte<extra></extra>",
    marker: {
      color: drawn.map((rung) => fill[rung.kind]),
      pattern: { shape: drawn.map((rung) => (rung.kind === "compressor" ? "/" : "")), size: 5, solidity: 0.25 },
    },
  };
  const layout = {
    autosize: true,
    margin: { l: 8, r: 44, t: 40, b: 52 },
    bargap: 0.32,
    title: { text: "What it has to beat", x: 0.012, y: 0.985, yanchor: "top", font: { size: 14, weight: 600 } },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style.fontFamily, size: 13, color: colour("--body-text-color") },
    xaxis: {
      title: { text: "bits per byte (shorter is better)", standoff: 8, font: { color: colour("--body-text-color-subdued"), size: 12 } },
      range: [0, longest * 1.08],
      gridcolor: colour("--border-color-primary"),
      zeroline: false,
      fixedrange: true,
    },
    yaxis: { autorange: "reversed", automargin: true, ticksuffix: "  ", fixedrange: true },
    hoverlabel: { bgcolor: colour("--background-fill-secondary"), font: { color: colour("--body-text-color") } },
  };
  Plotly.react(root, [trace], layout, { displayModeBar: false });
};
whenever((value) => {
  drawn = value.rungs || [];
  draw();
});
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
let width = 0;
new ResizeObserver(() => {
  if (root.offsetWidth !== width) draw();
  width = root.offsetWidth;
}).observe(element);
