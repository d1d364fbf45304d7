// What there is to publish: the run's name and some facts.
whenever((value) => {
  if (value.empty) {
    root.replaceChildren(make("p", "fl-empty", value.empty));
    return;
  }
  const facts = make("ul", "fl-facts");
  for (const fact of value.facts || []) facts.append(make("li", "", fact));
  root.replaceChildren(make("p", "fl-run-name", value.label || ""), facts);
});
