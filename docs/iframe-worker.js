// Browsers start no workers from a disk. There, this stands in for one, so that the search works: the script runs in
// a hidden frame, and messages go back and forth.
if (location.protocol === "file:") {
  const send = window.postMessage;
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #waiting = [];

    constructor(url) {
      super();
      addEventListener("message", ({ source, data }) => {
        if (source !== this.#frame.contentWindow) return;
        if (data !== "ready") return this.dispatchEvent(new MessageEvent("message", { data }));
        this.#waiting.forEach((message) => send.call(source, message, "*"));
        this.#waiting = null;
      });
      this.#frame.hidden = true;
      this.#frame.srcdoc = `<script>window.postMessage = (data) => parent.postMessage(data, "*")</script>
        <script src="${new URL(url, location.href)}"></script><script>postMessage("ready")</script>`;
      document.documentElement.append(this.#frame);
    }

    postMessage(message) {
      if (this.#waiting) this.#waiting.push(message);
      else send.call(this.#frame.contentWindow, message, "*");
    }
  };
}
