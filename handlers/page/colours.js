// One colour a label: the model's classes first, then others as they come.

// Each is told from paper and from night (3:1), and white text on it can be read (4.5:1); tests/test_pages.py.
const PALETTE = [
  "#396ed6", "#c05708", "#22864a", "#cf3546", "#7d51d2", "#00818c",
  "#c23492", "#707919", "#946540", "#0078a8", "#996b00", "#5e6b8a",
];
const NONE = "#6e747a";
const GOLDEN_ANGLE = 137.508; // degrees: labels that differ little have hues that differ much
const known = new Map();

export function colourOf(label) {
  if (label === null || label === undefined) return NONE;
  if (!known.has(label)) known.set(label, known.size < PALETTE.length ? PALETTE[known.size] : hashed(label));
  return known.get(label);
}

function hashed(label) {
  let hash = 7;
  for (const character of label) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return `oklch(0.54 0.12 ${Math.round(hash * GOLDEN_ANGLE) % 360})`;
}
