// JSON Patches and JSON Merge Patches that the server has applied to a canvas, applied to its list of records.
//
// Nothing is changed in place: records without a change stay the same objects. Properties may be called `__proto__`.

/** @typedef {{op: string, path: string, from?: string, value?: any}} Operation */

/**
 * The list `name` of a canvas after a JSON Patch; null if the patch copies other parts of the canvas into it.
 *
 * @param {any[]} list
 * @param {string} name
 * @param {Operation[]} operations
 * @returns {{list: any} | null}
 */
export function patched(list, name, operations) {
  let canvas = { [name]: list };
  for (const { op, path, from, value } of operations) {
    if (op === "test") continue; // the server has tested it
    const to = names(path);
    const source = op === "move" || op === "copy" ? names(from) : null;
    if (!to.length) return null;
    const here = to[0] === name;
    if (!source) {
      if (here) canvas = changed(canvas, to, op, value);
    } else if (source[0] === name) {
      const moved = source.reduce((found, step) => found[step], canvas);
      if (op === "move") canvas = changed(canvas, source, "remove");
      if (here) canvas = changed(canvas, to, "add", moved);
    } else if (here) return null;
  }
  return listOf(canvas, name);
}

/**
 * The list `name` of a canvas after a JSON Merge Patch; null if the patch replaces the canvas.
 *
 * @param {any[]} list
 * @param {string} name
 * @param {any} change
 * @returns {{list: any} | null}
 */
export function merged(list, name, change) {
  return isObject(change) ? listOf(merge({ [name]: list }, change), name) : null;
}

function listOf(canvas, name) {
  return { list: Object.hasOwn(canvas, name) ? canvas[name] : undefined };
}

/** Of a JSON Pointer. */
function names(pointer) {
  return pointer.split("/").slice(1).map((name) => name.replaceAll("~1", "/").replaceAll("~0", "~"));
}

/**
 * @param {any} value
 * @param {string[]} path
 * @param {string} op
 * @param {any} [given]
 */
function changed(value, [name, ...rest], op, given) {
  if (Array.isArray(value)) {
    const at = name === "-" ? value.length : Number(name);
    if (rest.length) return value.with(at, changed(value[at], rest, op, given));
    const copy = [...value];
    copy.splice(at, Number(op !== "add"), ...(op === "remove" ? [] : [given]));
    return copy;
  }
  if (rest.length) return { ...value, [name]: changed(value[name], rest, op, given) };
  if (op !== "remove") return { ...value, [name]: given };
  const { [name]: removed, ...others } = value;
  return others;
}

function merge(value, change) {
  if (!isObject(change)) return change;
  const properties = new Map(Object.entries(isObject(value) ? value : {}));
  for (const [name, given] of Object.entries(change)) {
    if (given === null) properties.delete(name);
    else properties.set(name, merge(properties.get(name), given));
  }
  return Object.fromEntries(properties);
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
