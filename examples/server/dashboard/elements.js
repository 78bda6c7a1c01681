// Elements, made and kept up to date.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** A name that may go on in the next line after a dot or a slash, rather than anywhere. */
export const breakable = (name) => name.split(/(?<=[./])/).flatMap((part) => [part, make("wbr")]);

/** Sets a text only where it differs, so that a selection and a reader's place stay. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives `parent` one child for each item; a child stays that of its item's key. */
export function keep(parent, items, key, create, update) {
  const had = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const name = String(key(item));
    const child = had.get(name) ?? create(item);
    child.dataset.key = name;
    had.delete(name);
    update(child, item);
    return child;
  });
  // Not by key: two items may have the same.
  const kept = new Set(children);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

/** Rows of a name, a value, and a key where others may bear the name; without a value, a heading. */
export function rows(id, pairs) {
  keep(
    $(id).tBodies[0],
    pairs,
    ([name, , key = name]) => key,
    ([name, value]) => {
      const head = make("th", { scope: value === undefined ? "rowgroup" : "row" }, ...breakable(name));
      if (value === undefined) {
        head.colSpan = 2;
        return make("tr", { className: "group" }, head);
      }
      return make("tr", {}, head, make("td"));
    },
    (row, [, value]) => value !== undefined && setText(row.cells[1], value),
  );
}
