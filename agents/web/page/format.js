// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const NONE = "–";

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  return Math.abs(value) >= 100 || Number.isInteger(value) ? whole.format(value) : three.format(value);
}

export const ms = (value) => {
  if (value === null || value === undefined) return NONE;
  return value >= 1000 ? `${three.format(value / 1000)} s` : `${three.format(value)} ms`;
};

export const percent = (value) => (value === null || value === undefined ? NONE : `${three.format(value * 100)} %`);

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export const day = (at) => (at ? new Date(at).toISOString().slice(0, 10) : NONE);
export const moment = (at) => (at ? new Date(at).toISOString().slice(0, 16).replace("T", " ") : NONE);
export const clock = (at) => new Date(at).toTimeString().slice(0, 8);
