{
  const byId = (id) => document.getElementById(id);
  const form = byId("form"), template = byId("template"), fill = byId("fill"), stop = byId("stop");
  const result = byId("result"), running = byId("running");
  let drawing = null, player = null;

  // what is said is read aloud; what runs is not, for it changes at every moment
  const say = (text, wrong = false) => {
    if (result.textContent !== text) result.textContent = text;
    result.className = wrong ? "wrong" : "";
    running.textContent = "";
  };

  byId("insert").addEventListener("click", () => {
    const size = Math.max(1, Math.floor(Number(byId("hole").value)) || 1);
    template.setRangeText(`[MASK:${size}]`, template.selectionStart, template.selectionEnd, "end");
    template.focus();
  });
  template.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stop.addEventListener("click", () => drawing?.abort());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!drawing) draw();
  });

  async function* lines(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      // a stream that broke off has ended, as one that was stopped by the user has not
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { done: true };
      });
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  }

  async function draw() {
    drawing = new AbortController();
    fill.disabled = true;
    stop.disabled = false;
    say("Waiting for the model \u2026");
    const request = {};
    for (const field of form.querySelectorAll("[name]")) {
      request[field.name] = field.dataset.number === undefined ? field.value : Number(field.value);
    }
    let ended = false;
    player?.leave();
    player = null;
    byId("stage").replaceChildren();
    try {
      const response = await fetch("draw", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(request),
        signal: drawing.signal,
      }).catch((error) => {
        throw error.name === "AbortError" ? error : new Error("The server does not answer: is it still running?");
      });
      for await (const line of lines(response.body)) {
        if (line.error) throw new Error(line.error);
        if (line.note) say(line.note);
        if (line.held) player = new Player(byId("stage"), line);
        if (line.rows) {
          player.add(line);
          const most = Math.max(...line.evaluations);
          const spent = `${most} network evaluation${most === 1 ? "" : "s"} per sample, ${line.seconds.toFixed(1)} s`;
          ended = line.calls === player.most;
          say(ended ? `Done: ${spent}` : "Filling in:");
          if (!ended) running.textContent = ` ${spent}`;
        }
      }
      if (!ended) say("The server has closed the connection; it may have been stopped.", true);
    } catch (error) {
      if (error.name === "AbortError") say("Stopped. What was drawn until then is below.");
      else say(error.message, true);
    } finally {
      drawing = null;
      fill.disabled = false;
      stop.disabled = true;
    }
  }
}
