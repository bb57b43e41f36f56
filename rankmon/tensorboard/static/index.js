// The entry point that TensorBoard loads in the tab's frame.

import { App } from "./app.js";
import { element } from "./dom.js";
import { fetched } from "./source.js";

/** Called by TensorBoard once it has created the frame. */
export function render() {
  const styles = ["./vendor/uPlot.min.css", "./style.css"].map((name) => {
    const link = element("link", { rel: "stylesheet", href: new URL(name, import.meta.url).href });
    return [link, new Promise((loaded) => Object.assign(link, { onload: loaded, onerror: loaded }))];
  });
  document.head.append(...styles.map(([link]) => link));
  const app = new App(document.body, fetched(new URL("..", import.meta.url)));
  return Promise.all(styles.map(([, loaded]) => loaded)).then(() => app.start());
}
