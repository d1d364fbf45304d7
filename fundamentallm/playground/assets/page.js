// Gradio gives every radio button of a group a name of its own, so the browser does not let the arrow keys move between
// them: that is done here.
document.addEventListener("keydown", (event) => {
  const direction = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!direction || !event.target.matches?.("input[type=radio]")) return;
  const group = event.target.closest("fieldset, .wrap, .block");
  const buttons = [...(group?.querySelectorAll("input[type=radio]:not(:disabled)") ?? [])];
  if (buttons.length < 2) return;
  const next = buttons[(buttons.indexOf(event.target) + direction + buttons.length) % buttons.length];
  event.preventDefault();
  next.focus();
  next.click();
});
