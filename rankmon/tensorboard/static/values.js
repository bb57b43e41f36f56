// Numbers as texts.

/** Formats a number: integers in full, other numbers with six digits; null is a value that is not finite. */
export function shown(value) {
  if (value === null) return "NaN";
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
}

/** Formats a number for a table: four digits suffice at a glance. */
export const brief = (value) => shown(Number.isFinite(value) && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value);
