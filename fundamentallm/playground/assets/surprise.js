// The measured text, each token the stronger in colour the less the model expected it; hovering tells the probability.
whenever((value) => {
  if (!value.tokens || !value.tokens.length) return root.replaceChildren();
  const card = make("section", "fl-card");
  const text = make("pre", "fl-surprise-text");
  text.tabIndex = 0;
  for (const [piece, strength, hint] of value.tokens) {
    const span = make("span", "fl-surprising", piece.replaceAll("↵", "↵\n"));
    span.style.setProperty("--strength", Number(strength));
    span.title = hint;
    text.append(span);
  }
  card.append(make("h3", "", "Where it was surprised"), make("p", "fl-note", value.note), text);
  root.replaceChildren(card);
});
