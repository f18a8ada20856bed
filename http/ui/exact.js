// JSON whose numbers stay as written: JavaScript rounds whole ones beyond 2^53 and writes 1.0 as 1.

// In no text of anybody else: stands for a number between here and JSON's own functions.
const MARK = `${crypto.getRandomValues(new Uint32Array(4)).join("-")}:`;
const MARKED = new RegExp(`"${MARK}([^"]+)"`, "g");
const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?$/;
const OWN = ["payload", "result_data", "metadata"];  // members of answers that are a user's
const changes = (source) => String(Number(source)) !== source;

class Digits {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
  toJSON() { return MARK + this.text; }
}

/** A number as a user typed it. */
export const numberOf = (text) => (changes(text) && NUMBER.test(text) ? new Digits(text) : Number(text));

/** As JSON.parse, with `Digits` for numbers that would not be written the same again. */
export function parse(text) {
  JSON.parse(text);  // says what is wrong with a text that is no JSON
  const marked = text.replace(TOKEN, (token) => (token[0] !== '"' && changes(token) ? `"${MARK}${token}"` : token));
  return JSON.parse(marked, (key, value) => (value?.startsWith?.(MARK) ? new Digits(value.slice(MARK.length)) : value));
}

/** An answer of the API: its figures are numbers to count with, what is a user's stays exact. */
export function answer(text) {
  const plain = JSON.parse(text);
  return OWN.some((name) => text.includes(`"${name}":`)) ? graft(plain, parse(text)) : plain;
}

function graft(plain, precise) {
  if (plain && typeof plain === "object") {
    for (const key of Object.keys(plain)) plain[key] = OWN.includes(key) ? precise[key] : graft(plain[key], precise[key]);
  }
  return plain;
}

export const stringify = (value, indent) => JSON.stringify(value, null, indent).replace(MARKED, "$1");
