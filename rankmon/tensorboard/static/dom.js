// Create elements from data. Strings are always inserted as text: names of runs and tags are never HTML.

/**
 * @param {string} tag
 * @param {Object<string, any>} [attributes] `on...` are listeners; null and false omit the attribute
 * @param {...(Node|string|null)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Creates a labeled checkbox; onChange is called with its state. */
export function checkbox(label, checked, onChange, attributes = {}) {
  const input = element("input", {
    type: "checkbox",
    ...attributes,
    onchange: () => onChange(input.checked),
  });
  input.checked = checked;
  return element("label", { class: "check" }, input, label);
}

/** Creates a labeled drop-down list. */
export function choice(label, options, chosen, onChange, attributes = {}) {
  const select = element("select", { ...attributes, onchange: () => onChange(select.value) });
  for (const option of options) select.append(element("option", { value: option }, option));
  select.value = chosen;
  return element("label", { class: "choice" }, `${label} `, select);
}

/** Creates a button. */
export function button(label, onClick, attributes = {}) {
  return element("button", { type: "button", ...attributes, onclick: onClick }, label);
}

/** Makes the browser save a file. */
export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Copies a text to the clipboard; in a frame the browser may only allow the old way. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
