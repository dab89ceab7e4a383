"use strict";

// Puts the parts of the page that have changed into their places, as larder sends
// them. A page that nobody sees asks for nothing.
(() => {
  const state = document.getElementById("live");
  if (!state || !window.EventSource) {
    return;
  }
  let source = null;

  const say = (text) => {
    if (state.textContent !== text) {
      state.textContent = text;
    }
  };

  const show = (event) => {
    const parts = JSON.parse(event.data);
    for (const id of Object.keys(parts)) {
      const element = document.getElementById(id);
      if (element) {
        element.innerHTML = parts[id];
      }
    }
    say("Live.");
  };

  const listen = () => {
    if (source || document.hidden) {
      return;
    }
    source = new EventSource(state.dataset.events);
    source.onmessage = show;
    source.onerror = () => say(source && source.readyState === EventSource.CLOSED ? "Not live: reload for newer figures." : "Not live: larder does not answer.");
  };

  const rest = () => {
    if (source) {
      source.close();
      source = null;
    }
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : listen()));
  window.addEventListener("pagehide", rest);
  window.addEventListener("pageshow", listen);
  document.getElementById("reload").hidden = true;
  listen();
})();
