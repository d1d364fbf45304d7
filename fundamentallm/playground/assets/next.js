whenever((value) => {
  const list = make("ol", "fl-next-list");
  for (const item of value.tokens || []) {
    const line = make("li", "");
    const bar = make("span", "fl-bar");
    bar.style.setProperty("--share", item.probability);
    const kept = make("span", "fl-kept");
    for (const [name, keeps] of item.kept) kept.append(make("span", keeps ? "fl-kept-yes" : "fl-kept-no", name));
    line.append(make("span", "fl-glyph", item.shown), bar, make("span", "fl-count", item.percent), kept);
    list.append(line);
  }
  root.replaceChildren(make("p", "fl-note", value.note || ""), list);
});
