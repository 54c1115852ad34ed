// CRIU's options that are taken and change nothing: what they ask for is so anyway, or is refused by name where it is needed.

import { log } from "../log.ts";
import type { CriuOptions, OptionName } from "./options.ts";

/** Options that ask for what is so anyway: another way to the same result, or leave for what is not needed here. */
const NOT_NEEDED: readonly OptionName[] = [
  "evasive-devices",
  "force-irmap",
  "irmap-scan-path",
  "deprecated",
  "mntns-compat-mode",
  "allow-uprobes",
  "unprivileged",
  "libdir",
];

/** Notes options that change nothing. */
export function noteOptions(options: CriuOptions): void {
  for (const name of NOT_NEEDED) {
    if (isGiven(options, name)) log.debug(`option --${name} changes nothing here`);
  }
}

function isGiven(options: CriuOptions, name: OptionName): boolean {
  const { flags, values, lists } = options;
  return (flags as ReadonlySet<string>).has(name) || name in values || name in lists;
}
