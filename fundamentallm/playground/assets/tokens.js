// Every token a coloured span; hovering tells its number.
whenever((value) => {
  const text = make("pre", "fl-tokens-text");
  text.tabIndex = 0;
  for (const [piece, colour, id] of value.tokens || []) {
    const span = make("span", "fl-token fl-token-" + Number(colour), piece.replaceAll("↵", "↵\n"));
    span.title = "token " + id;
    text.append(span);
  }
  root.replaceChildren(text, make("p", "fl-note", value.note || ""));
});
