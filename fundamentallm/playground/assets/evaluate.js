whenever((value) => {
  const parts = [];
  if (value.progress !== undefined && value.progress !== null) {
    const line = make("div", "fl-progress");
    const bar = make("progress", "");
    bar.max = 1;
    bar.value = value.progress;
    line.append(make("span", "fl-note", value.doing || ""), bar);
    parts.push(line);
  }
  if (value.about) parts.push(make("p", "fl-about", value.about));
  if (value.tiles) {
    const measures = make("div", "fl-measures");
    measures.append(tiles(value.tiles), tiles(value.sizes));
    parts.push(measures);
  }
  if (value.error) {
    const box = make("div", "fl-notice fl-notice-error", value.error);
    box.setAttribute("role", "alert");
    parts.push(box);
  }
  if (value.empty) parts.push(make("p", "fl-empty", value.empty));
  root.replaceChildren(...parts);
});
