// Before any script of Gradio's. Its loading screen counts seconds in animation frames, and goes on when it is gone
// (gradio 6.31): sixty wake-ups a second, which a training on the same processors feels. Here its chain of requests ends.
{
  const request = window.requestAnimationFrame.bind(window);
  const mounted = () => document.getElementById("header") !== null;
  let running = null; // the chain of the callback at work
  window.requestAnimationFrame = (callback) => {
    const chain = running ?? { loading: !mounted() };
    if (chain.loading && mounted() && String(callback).includes("performance.now()")) return 0;
    return request((time) => {
      running = chain;
      try {
        callback(time);
      } finally {
        running = null;
      }
    });
  };
}
