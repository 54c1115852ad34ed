// Numbers as --display-stats shows them.

/** A count in decimal and hexadecimal digits. */
export function pageCount(count: number): string {
  return `${count} (0x${count.toString(16)})`;
}
