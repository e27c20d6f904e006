// Browsers start no Worker from a file: when the site is opened as one, a hidden iframe takes its place for the search.
if (location.protocol === "file:") {
  const load = (page, url) => new Promise(done => {
    const script = page.createElement("script")
    script.src = url
    script.onload = done
    page.body.append(script)
  })
  window.Worker = window.IFrameWorker = class extends EventTarget { // the theme asks for the second name
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
      this.inside.importScripts = async (...urls) => {
        for (const each of urls) await load(frame.contentDocument, each)
      }
      this.ready = load(frame.contentDocument, url)
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", {data})))
    }
  }
}
