// One colour a label: the model's classes first, then others as they come.

const PALETTE = [
  "#4e79d8", "#e8833a", "#3aa76d", "#d64f5c", "#8d6bd1", "#b0793f",
  "#d86bb0", "#2fa9bd", "#a3a83a", "#6f7f95", "#d1a01f", "#5560b8",
];
const NONE = "#8b9096";
const known = new Map();

export function colourOf(label) {
  if (label === null || label === undefined) return NONE;
  if (!known.has(label)) known.set(label, known.size < PALETTE.length ? PALETTE[known.size] : hashed(label));
  return known.get(label);
}

function hashed(label) {
  let hash = 7;
  for (const character of label) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return `hsl(${hash % 360} ${45 + (hash % 5) * 6}% ${50 + (hash % 3) * 5}%)`;
}
