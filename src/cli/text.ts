// Values and tables as text.

import { RepriseError } from "../errors.ts";

/** Rows under a heading, in columns as wide as their widest cell; the last column is as long as it is. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [heading, ...rows].map((row) => row.map(visible));
  const widths = heading.map((_, column) =>
    Math.max(...all.map((row) => (row[column] ?? "").length)),
  );
  return all
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
}

/** Names may hold anything, what moves the cursor among it. */
export function visible(text: string): string {
  return text.replaceAll(
    /\p{Cc}/gu,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
}

/** Bytes with a unit, three digits at most: "512 B", "1.4 MB". */
export function bytesText(bytes: number): string {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let amount = bytes;
  let unit = 0;
  while (amount >= 999.5 && unit < units.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return `${unit > 0 && amount < 9.95 ? amount.toFixed(1) : amount.toFixed(0)} ${units[unit] ?? ""}`;
}

/** Time since `then` (ISO 8601) with its largest unit: "12 s", "3 h". */
export function ageText(then: string, now: number = Date.now()): string {
  const seconds = Math.max(0, Math.floor((now - Date.parse(then)) / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** Microseconds as milliseconds: "8.3 ms". */
export function microsText(micros: number): string {
  return `${(micros / 1000).toFixed(1)} ms`;
}

/** A command on one line, quoted where a shell would need it. */
export function commandText(command: readonly string[]): string {
  return command
    .map((word) =>
      /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`,
    )
    .join(" ")
    .replaceAll("\n", " ");
}

/** The number of a task's checkpoint, as it was typed. @throws RepriseError BAD_ARGUMENT */
export function checkpointNumber(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (/^\d+$/.test(text)) return Number(text);
  throw new RepriseError(
    "BAD_ARGUMENT",
    `${JSON.stringify(text)} is not the number of a checkpoint`,
    {
      hint: "reprise inspect NAME lists the checkpoints of a task.",
    },
  );
}
