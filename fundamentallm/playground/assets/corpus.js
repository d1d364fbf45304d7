// What the corpus holds: counts, how it begins, its characters.
const row = (item) => {
  const cell = make("li", "fl-char");
  cell.title = item.name;
  const bar = make("span", "fl-bar");
  bar.style.setProperty("--share", item.bar);
  cell.append(make("span", "fl-glyph" + (item.visible ? "" : " fl-glyph-space"), item.shown), bar, make("span", "fl-count", item.count));
  return cell;
};
whenever((value) => {
  if (!value.tiles) return root.replaceChildren();
  const preview = make("section", "fl-card");
  const text = make("pre", "fl-preview", value.preview);
  text.tabIndex = 0;
  preview.append(make("h3", "", "How it begins"), text);
  const characters = make("section", "fl-card");
  const list = make("ul", "fl-chars");
  list.tabIndex = 0;
  list.append(...value.alphabet.map(row));
  characters.append(make("h3", "", "Its characters, most common first"), list, make("p", "fl-note", value.alphabet_note));
  const pair = make("div", "fl-pair");
  pair.append(preview, characters);
  root.replaceChildren(tiles(value.tiles), pair);
});
